"""Speed on text: ``python benchmarks/text_speed.py --minutes 20``.

Three parts, each beside a plainly written reference in the same process, timed in turn:

embed     sentence vectors of SST-2 by a BERT made from a configuration (`text_encoder`), without
          the cache, beside the loop over batches in data order as a user of transformers writes it,
          padded to the longest text of the batch or to one length for all. Tokens included.
gradient  a gradient-matching step on Banking77's vectors (77 groups) beside a loop over classes by
          plain autograd, and beside the package's own way of other nets, which forms the gradients
          of 16 classes at a time.
padding   a gradient-matching step in token space: the same texts padded to more tokens, and all of
          an encoder's parameters, its last layer or its head alone being matched.

Rows that ``results/text_speed.csv`` holds are skipped; none is begun once the minutes are spent.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import DATA, alternate, append, is_done, machine, median
from text_encoder import make, texts_of
from torch import Tensor, nn

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.distiller import Distiller
from mmdd.modalities.text.embed import SentenceEncoder
from mmdd.objectives import gradient as matching

TABLE = "text_speed"
SENTENCES, LONGEST, BATCH = 768, 64, 32
REAL = 64
IN_A_ROW = 5
"""Steps timed together, as a run makes them: one alone finds caches full of the other's data."""
Row = dict[str, Any]
Options = dict[str, Any]

EMBED = [
    {"part": "embed", "setting": f"hidden {hidden} layers {layers}", "beside": how}
    for hidden, layers in ((128, 2), (256, 2))
    for how in ("longest", "max_length")
]
LOOP, FORMED = "loop over classes", "gradients formed"
GRADIENT = [
    {"part": "gradient", "setting": f"{encoder} {items} per class", "beside": beside}
    for beside in (LOOP, FORMED)
    for encoder in ("linear", "mlp")
    for items in (1, 5)
]
PADDING = [
    {"part": "padding", "setting": f"{name} {length} tokens", "beside": ""}
    for name in ("textcnn", "all", "last", "head")
    for length in (64, 128)
]
PLAN = EMBED + GRADIENT + PADDING


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds by the clock, and of all cores together."""
    wait(device)
    started, worked = time.perf_counter(), time.process_time()
    call()
    wait(device)
    return time.perf_counter() - started, time.process_time() - worked


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(
    mine: Callable[[], Any],
    plain: Callable[[], Any],
    device: torch.device,
    rounds: int,
    in_a_row: int = 1,
) -> Row:
    """Both timed in turn after one call each to warm up, so many calls together."""

    def seconds(call: Callable[[], Any]) -> Callable[[], tuple[float, float]]:
        def calls() -> None:
            for _ in range(in_a_row):
                call()

        return lambda: timed(calls, device)

    mine(), plain()
    pairs = alternate(seconds(mine), seconds(plain), rounds)
    own, other = ([list(column) for column in zip(*side, strict=True)] for side in pairs)
    ratios = [b / a for a, b in zip(own[0], other[0], strict=True)]
    cores = [b / a for a, b in zip(own[1], other[1], strict=True)]
    return {
        "seconds": f"{median(own[0]) / in_a_row:.4g}",
        "plain_seconds": f"{median(other[0]) / in_a_row:.4g}",
        "ratio_median": round(median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "core_ratio_median": round(median(cores), 2),
    }


# -- sentence vectors ------------------------------------------------------------------------------


@torch.inference_mode()
def plain_vectors(
    model: nn.Module, tokenizer: Any, texts: list[str], padding: str, device: torch.device
) -> Tensor:
    """[N, D] unit means of the last layer, batch after batch in the order of the data."""
    found = []
    for start in range(0, len(texts), BATCH):
        given = tokenizer(
            texts[start : start + BATCH],
            padding=padding,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        ).to(device)
        states = model(**given).last_hidden_state
        shown = given["attention_mask"].unsqueeze(-1)
        means = (states * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)
        found.append(F.normalize(means, dim=1).cpu())
    return torch.cat(found)


def embed(line: Row, args: argparse.Namespace, folder: Path) -> Row:
    """Sentences per second of both, and their largest difference."""
    from transformers import AutoModel, AutoTokenizer

    device = mm.device(args.device)
    _, hidden, _, layers = line["setting"].split()
    texts = texts_of("text/sst2")[0]
    name = make(folder / f"bert-{hidden}-{layers}", texts, hidden=int(hidden), layers=int(layers))
    texts = texts[:SENTENCES]
    encoder = SentenceEncoder(name, "mean", True, LONGEST, device)
    model = AutoModel.from_pretrained(name).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(name)
    fields = [(text,) for text in texts]

    def mine() -> Tensor:
        return torch.from_numpy(encoder.embed(encoder.tokens(fields)))

    def plain() -> Tensor:
        return plain_vectors(model, tokenizer, texts, line["beside"], device)

    apart = float((mine() - plain()).abs().max())
    row = compared(mine, plain, device, args.rounds)
    tokens = encoder.tokens(fields)
    encoder.vectors(tokens, "train")
    cached = median([timed(lambda: encoder.vectors(tokens, "train"), device)[0] for _ in range(3)])
    return {
        **row,
        "sentences_per_second": round(len(texts) / float(row["seconds"])),
        "plain_sentences_per_second": round(len(texts) / float(row["plain_seconds"])),
        "cached_seconds": f"{cached:.3g}",
        "largest_difference": f"{apart:.1e}",
        "sentences": len(texts),
    }


# -- gradient matching, many groups ----------------------------------------------------------------


def plain_net(encoder: str, size: int, classes: int) -> nn.Module:
    """The same nets as the package's, as they are usually written."""
    if encoder == "linear":
        return nn.Linear(size, classes)
    return nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, classes))


def plain_loss(net: nn.Module, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Layer-wise cosine (Zhao et al. 2021) between the gradients of every class."""
    weights = list(net.parameters())
    loss = torch.zeros((), device=weights[0].device)
    for label, sides in enumerate(zip(real, synthetic, strict=True)):
        losses = [F.cross_entropy(net(x), x.new_full((len(x),), label).long()) for x in sides]
        target = torch.autograd.grad(losses[0], weights)
        made = torch.autograd.grad(losses[1], weights, create_graph=True)
        for g, h in zip(target, made, strict=True):
            if g.ndim > 1:
                lengths = g.norm(dim=1) * h.norm(dim=1)
                loss = loss + (1 - (g * h).sum(dim=1) / (lengths + 1e-6)).sum()
    return loss


def by_group(batch: Any, groups: int) -> list[Tensor]:
    return [batch.inputs[batch.groups == group] for group in range(groups)]


class PlainStep:
    """Gradient matching class after class, on vectors of its own."""

    def __init__(self, ours: Distiller, make_net: Callable[[], nn.Module]) -> None:
        groups = range(ours.real.num_groups)
        self.items = [x.detach().clone() for x in by_group(ours.synthetic.batch(), len(groups))]
        for items in self.items:
            items.requires_grad_()
        self.members = [ours.real.select(ours.real.members(group)).inputs for group in groups]
        self.make = make_net
        self.optimiser = torch.optim.SGD(self.items, 0.1, momentum=0.5)
        self.stream = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        """Update the vectors once."""
        real = []
        for members in self.members:
            order = torch.randperm(len(members), generator=self.stream)[:REAL]
            real.append(members[order.to(members.device)])
        self.optimiser.zero_grad()
        plain_loss(self.make(), real, self.items).backward()
        self.optimiser.step()


def angle(ours: Distiller, net: nn.Module) -> float:
    """Cosine between the items' gradients, ours and the plain one, at one net and real batch."""
    step = ours._comparison()
    index = step.real.draw_index(step.per_group, step.generator)
    step = dataclasses.replace(step, selector=lambda _: index)
    leaf = ours.synthetic.leaves()["inputs"]
    (mine,) = torch.autograd.grad(ours.objective(step), leaf)
    with torch.no_grad():
        for own, value in zip(net.parameters(), in_order(step.drawn.params), strict=True):
            own.copy_(value)
    sides = [by_group(b, ours.real.num_groups) for b in (step.real_batch(), step.synthetic_batch())]
    (theirs,) = torch.autograd.grad(plain_loss(net, *sides), leaf)
    return float(F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0))


def in_order(params: dict[str, Tensor]) -> Iterator[Tensor]:
    """Parameters with the classifier, which the package names first, at the end."""
    yield from (v for name, v in params.items() if not name.startswith("classifier"))
    yield from (v for name, v in params.items() if name.startswith("classifier"))


def distiller(data: str, device: torch.device, options: Options) -> tuple[Distiller, int]:
    """A distiller of gradient matching at fresh nets, and the number of classes."""
    recipe = compose.from_flags(
        str(DATA / data),
        method="dc",
        device=str(device),
        options={
            "source": {"kind": "fresh"},
            "synthetic.initialise": "real",
            "real.per_group": REAL,
            **options,
        },
    )
    splits = build.open_data(recipe, None, device)
    parts = build.parts(recipe, splits.info, device)
    return build.distiller(parts, splits), splits.info.classes


def formed(data: str, device: torch.device, options: Options) -> Callable[[], Any]:
    """The package's own step as it is for nets whose gradients do not factor."""
    other, _ = distiller(data, device, options)
    factor, matching.linear_layers = matching.linear_layers, lambda *_: None
    other.step()
    matching.linear_layers = factor
    return other.step


def gradient(line: Row, args: argparse.Namespace, folder: Path) -> Row:
    """A step of 77 groups beside the loop over them."""
    device = mm.device(args.device)
    encoder, items, *_ = line["setting"].split()
    options = {"learner.encoder": encoder, "synthetic.per_class": int(items)}
    ours, classes = distiller("text/banking77_minilm", device, options)
    size = ours.synthetic.leaves()["inputs"].shape[1]

    def make_net() -> nn.Module:
        return plain_net(encoder, size, classes).to(device)

    cosine = angle(ours, make_net())
    plain: Callable[[], Any] = PlainStep(ours, make_net)
    if line["beside"] == FORMED:
        plain = formed("text/banking77_minilm", device, options)
    return {
        **compared(ours.step, plain, device, args.rounds, in_a_row=IN_A_ROW),
        "groups": classes,
        "steps_in_a_row": IN_A_ROW,
        "gradient_cosine": f"{cosine:.6f}",
    }


# -- padding and matched parameters ----------------------------------------------------------------


def padding(line: Row, args: argparse.Namespace, folder: Path) -> Row:
    """Seconds of a step with texts padded to so many tokens."""
    device = mm.device(args.device)
    name, length, _ = line["setting"].split()
    options: Options = {
        "data.length": int(length),
        "data.space": "tokens",
        "synthetic.per_class": 10,
    }
    if name in ("all", "last", "head"):
        texts = texts_of("text/sst2")[0]
        options["data.model"] = make(folder / "bert-128-2", texts, hidden=128)
        options |= {"learner.encoder": "transformers", "learner.tuning": name}
        options["learner.layers"] = 1
    else:
        options["learner.encoder"] = name
    ours, _ = distiller("text/sst2", device, options)
    params = ours.learner.trainable(ours.learner.init(torch.Generator().manual_seed(0)))
    ours.step()
    times = [timed(ours.step, device) for _ in range(args.rounds)]
    shown = ours.synthetic.batch().inputs["mask"].sum(dim=1)
    return {
        "seconds": f"{median([a for a, _ in times]):.4g}",
        "core_seconds": f"{median([b for _, b in times]):.4g}",
        "matched_parameters": sum(leaf.numel() for leaf in params.values()),
        "longest_text": int(shown.max()),
    }


PARTS = {"embed": embed, "gradient": gradient, "padding": padding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="a part")
    args = parser.parse_args()
    facts = {"threads": torch.get_num_threads(), "device": str(mm.device(args.device)), **machine()}
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for line in PLAN:
            key = {**line, "device": facts["device"], "threads": facts["threads"]}
            if args.only not in line["part"] or is_done(TABLE, key):
                continue
            if time.monotonic() > deadline:
                print(f"out of time before {line}")
                break
            row = {**line, **PARTS[line["part"]](line, args, Path(folder)), **facts}
            append(TABLE, row)
            print(*(f"{k}={v}" for k, v in row.items() if k not in facts), flush=True)


if __name__ == "__main__":
    main()
