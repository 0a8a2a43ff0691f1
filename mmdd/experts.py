"""Expert trajectories on disk: nets in training on the real set, one safetensors file per expert.

Source: Cazenavette et al. 2022, "Dataset Distillation by Matching Training Trajectories" (CVPR):
the parameters of many nets, at their start and after every epoch, are recorded once and read by
every later run. `mmdd.recording` makes them; here they are described, stored and read.

A folder holds ``manifest.json`` (how they were recorded, which files, their sizes and digests) and
``expert-0000.safetensors`` and so on: under each parameter's name its kept snapshots, stacked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmdd.errors import UserError
from mmdd.expert_options import FORMAT, Recording
from mmdd.files import json_text, read_json, sha256, write_json
from mmdd.learner import Learner, Params

MANIFEST = "manifest.json"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.complex64: "C64",
}
"""Names that the safetensors format gives to the types of parameters."""


# -- what a folder holds ---------------------------------------------------------------------------

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Type (a safetensors name) and shape of every parameter of one net."""


def layout_of(learner: Learner) -> Layout:
    """Describe the parameters that `learner.init` draws, without drawing them."""
    state = [*learner.encoder.named_parameters(), *learner.encoder.named_buffers()]
    numbers = [(n, v) for n, v in state if v.is_floating_point() or v.is_complex()]
    # as the library orders them: wide types first, so that every tensor is aligned
    numbers.sort(key=lambda pair: (-pair[1].element_size(), pair[0]))
    return {name: (DTYPES[value.dtype], tuple(value.shape)) for name, value in numbers}


def shard_name(expert: int) -> str:
    """File name of an expert."""
    return f"expert-{expert:04d}.safetensors"


@dataclasses.dataclass
class Manifest:
    """What a folder holds. `shards` lists the finished experts in order.

    Attributes
    ----------
    recording: `Recording.of_one`.
    about: what else decides the experts (encoder, augmentation, precision).
    layout: of one snapshot.
    versions: of the libraries that recorded, each set of them once.
    shards: number of the ``expert``, ``file``, ``bytes``, ``sha256`` and ``losses``: the mean
        training loss of every epoch.
    """

    recording: dict[str, Any]
    seed: int
    fingerprint: str
    about: dict[str, Any]
    layout: dict[str, Any]
    versions: list[dict[str, str]]
    shards: list[dict[str, Any]]
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the folder's manifest. Raises `UserError` if there is none or it is damaged."""
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"there are no expert trajectories in {str(folder)!r}",
                expected=f"a folder with a {MANIFEST}",
                hint="Record them first, or name another folder.",
            )
        values = read_json(path)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise UserError(
                f"{str(path)!r} is of an unknown format", got=found, expected=str(FORMAT)
            )
        try:
            made = cls(**values)
            Recording(**made.recording)
            names = {"expert", "file", "bytes", "sha256", "losses"}
            complete = all(names <= shard.keys() for shard in made.shards)
        except (TypeError, AttributeError):
            complete = False
        if not complete:
            raise UserError(f"{str(path)!r} is damaged: some of its entries are missing")
        return made

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest as a whole."""
        self.shards.sort(key=lambda shard: int(shard["expert"]))
        write_json(folder / MANIFEST, dataclasses.asdict(self))

    def identity(self) -> dict[str, Any]:
        """What must agree for experts to belong together, as it reads back from JSON."""
        told = {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            **self.recording,
            **{f"about.{name}": value for name, value in self.about.items()},
        }
        found: dict[str, Any] = json.loads(json_text(told))
        return found

    def require_same(self, other: Manifest, folder: Path) -> None:
        """Raise `UserError` naming what differs, if `other` tells of experts made otherwise."""
        has, wanted = self.identity(), other.identity()
        differ = [n for n in [*wanted, *(has.keys() - wanted)] if has.get(n) != wanted.get(n)]
        if not differ:
            return
        name = differ[0]
        others = f" (and {', '.join(differ[1:4])})" if differ[1:] else ""
        raise UserError(
            f"the experts in {str(folder)!r} were recorded otherwise: {name} differs{others}",
            got=wanted.get(name, "nothing"),
            expected=repr(has.get(name, "nothing")),
            hint="Use what they were recorded with, or record into another folder.",
        )

    def require_net(self, learner: Learner, folder: Path) -> None:
        """Raise `UserError` naming a parameter, if these are not the parameters of `learner`."""
        has = {name: (kind, tuple(shape)) for name, (kind, shape) in self.layout.items()}
        wanted = layout_of(learner)
        for name in [*wanted, *has]:
            if has.get(name) != wanted.get(name):
                raise UserError(
                    f"the experts in {str(folder)!r} are another net's: {name} differs",
                    got=_describe(wanted.get(name)),
                    expected=_describe(has.get(name)),
                    hint="Use the encoder they were recorded with, or record into another folder.",
                )


def _describe(kind: tuple[str, tuple[int, ...]] | None) -> str:
    return "no such parameter" if kind is None else f"{kind[0]} {list(kind[1])}"


# -- reading ---------------------------------------------------------------------------------------


class Experts:
    """Recorded trajectories, read snapshot by snapshot; nothing is held in memory.

    Attributes
    ----------
    count: experts that may be read, numbered from 0.
    epochs: length of a trajectory; epoch 0 is the start.
    kept: epochs whose snapshots are there (see `Recording.keep`).
    """

    def __init__(self, folder: Path, manifest: Manifest, count: int) -> None:
        self.folder, self.manifest, self.count = folder, manifest, count
        self.recording = Recording(count=count, **manifest.recording)
        self.epochs, self.kept = self.recording.epochs, self.recording.kept
        self._places = {epoch: place for place, epoch in enumerate(self.kept)}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        count: int | None = None,
        fingerprint: str | None = None,
        learner: Learner | None = None,
        verify: bool = False,
    ) -> Experts:
        """Open a folder of experts.

        Parameters
        ----------
        count: the first so many; None for all that are finished.
        fingerprint: of the data that they must come from, if it matters.
        learner: the net that they must fit, if it matters.
        verify: also compare the files' digests, which reads them whole; sizes are always compared.

        Raises `UserError` when experts are missing, damaged, or of other data or another net.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise UserError(
                f"the experts in {str(folder)!r} were trained on other data",
                got=fingerprint[:12],
                expected=f"fingerprint {manifest.fingerprint[:12]}",
                hint="Bring that data back, or record experts of this data.",
            )
        if learner is not None:
            manifest.require_net(learner, folder)
        ready = leading(shard["expert"] for shard in manifest.shards)
        if ready < (count or 1):
            raise UserError(
                f"too few experts in {str(folder)!r}",
                got=ready,
                expected=f"at least {count or 1}",
                hint="Record the missing ones: the finished ones are kept.",
            )
        made = cls(folder, manifest, ready if count is None else count)
        for shard in manifest.shards[: made.count]:
            check_shard(folder, shard, verify)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(int(shard["bytes"]) for shard in self.manifest.shards[: self.count])

    def losses(self, expert: int) -> list[float]:
        """[epochs] mean training loss of every epoch."""
        return list(self._shard(expert)["losses"])

    def params(self, expert: int, epoch: int, device: torch.device | str = "cpu") -> Params:
        """Read one snapshot: tensors of their own, on `device`.

        Raises `UserError` for an expert or epoch that was not kept, or a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / self._shard(expert)["file"]
        if epoch not in self._places:
            raise UserError(
                "this epoch of the experts was not kept",
                got=epoch,
                expected=f"0 or {self.epochs}" if len(self.kept) == 2 else f"0 to {self.epochs}",
            )
        place = self._places[epoch]
        try:
            with safe_open(path, framework="pt") as opened:
                # copied, because the library maps the file
                return {
                    name: opened.get_slice(name)[place].to(device, copy=True)
                    for name in self.manifest.layout
                }
        except (SafetensorError, OSError, ValueError) as error:
            raise _unusable(path, str(error).splitlines()[0]) from None

    def first(self, expert: int, device: torch.device | str = "cpu") -> Params:
        """Read where the expert started."""
        return self.params(expert, 0, device)

    def last(self, expert: int, device: torch.device | str = "cpu") -> Params:
        """Read where the expert ended."""
        return self.params(expert, self.epochs, device)

    def _shard(self, expert: int) -> dict[str, Any]:
        if not 0 <= expert < self.count:
            raise UserError("no such expert", got=expert, expected=f"0 to {self.count - 1}")
        return self.manifest.shards[expert]


def check_shard(folder: Path, shard: Mapping[str, Any], verify: bool = False) -> None:
    """Raise `UserError` if the file that `shard` tells of is missing, cut, or (verify) changed."""
    path = folder / shard["file"]
    if not path.is_file():
        raise _unusable(path, "nothing there")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise _unusable(path, f"{size} bytes instead of {shard['bytes']}")
    if verify and sha256(path) != shard["sha256"]:
        raise _unusable(path, "content that does not match its digest")


def leading(numbers: Iterable[int]) -> int:
    """How many of 0, 1, 2, … there are without a gap."""
    found = set(numbers)
    return next(n for n in range(len(found) + 1) if n not in found)


def _unusable(path: Path, got: str) -> UserError:
    return UserError(
        f"the expert file {str(path)!r} is missing or damaged",
        got=got,
        expected=f"what {MANIFEST} tells",
        hint="Delete it and record again: only this expert is made anew.",
    )
