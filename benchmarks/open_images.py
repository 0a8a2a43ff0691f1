"""Time and memory of opening a large set: ``python benchmarks/open_images.py``.

Each set is opened in a fresh process. Growth is that of the resident memory at its peak, mapped
Arrow files included, over interpreter, torch and `datasets`. The bound is 1.5 times the raw uint8
bytes plus a fixed 64 MiB.
"""

from __future__ import annotations

import argparse
import json

from common import DATA, append, machine, quiet_python

CODE = """
import json, resource, time, torch, datasets, PIL.Image
from mmdd import build, compose
from mmdd.modalities.images.modality import IMAGES
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
recipe = compose.compose(flags={{"data.source": {source!r}}})
started = time.perf_counter()
splits = build.open_data(recipe, None, torch.device("cpu"))
seconds = time.perf_counter() - started
parts = [splits.train, splits.validation, splits.test]
raw = sum(p.values.numel() * p.values.element_size() for p in parts) / 2**20
print(json.dumps(dict(items=sum(map(len, parts)), seconds=round(seconds, 2),
    raw_uint8_mib=round(raw, 1), before_mib=round(before), peak_mib=round(peak()),
    growth_mib=round(peak() - before),
    beyond_1_5_raw_mib=round(peak() - before - 1.5 * raw))))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=["fashion_mnist", "cifar10_jpeg"])
    for name in parser.parse_args().sets:
        found = json.loads(quiet_python(CODE.format(source=str(DATA / "images" / name))))
        row = {"data": name, **found, **machine()}
        print(row)
        append("open_images", row)


if __name__ == "__main__":
    main()
