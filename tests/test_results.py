"""The table of results: labels and rates of its rows, and the rows that are kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from fakes import seeded
from torch import nn

from mmdd import build, results
from mmdd.card import card
from mmdd.compose import compose
from mmdd.errors import UserError
from mmdd.evaluate import Trainer
from mmdd.labels import HardLabels, SoftLabels
from mmdd.learner import Learner
from mmdd.progress import Progress
from mmdd.protocols import Protocol
from mmdd.real import ResidentData
from mmdd.representations import Direct, Representation
from mmdd.results import Judge, detached, remembered, with_rates
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.tables import show_results
from mmdd.tasks.classification import Classification

SMALL = {
    "learner.encoder": "mlp",
    "learner.width": 8,
    "learner.depth": 1,
    "evaluate.protocol": "quick",
    "evaluate.epochs": 2,
    "evaluate.learners": 2,
    "evaluate.full": False,
}


@pytest.fixture(scope="module")
def splits():
    recipe = compose("images/digits_dm", options=SMALL)
    opened = build.open_data(recipe, None, torch.device("cpu"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMDD_RECOMPUTE", raising=False)
    return tmp_path / "cache"


def composed(learned=False, **options):
    recipe = compose("images/digits_dm", options=SMALL | options)
    if learned:
        # a recipe that learns no step size may not ask for one; these sets bring their own
        recipe.evaluate.lr = "learned"
    return recipe


def judge(splits, **options):
    recipe = composed(**options)
    return Judge(build.parts(recipe, splits.info, torch.device("cpu")), splits)


def written(**fields):
    """Options that write a protocol out."""
    return {f"evaluate.{name}": value for name, value in fields.items()}


class Four(Representation):
    """Every stored item stands for itself and three brighter ones."""

    expand = 4

    def __init__(self, items):
        super().__init__()
        self.inputs = nn.Parameter(items.clone())

    def decode(self, index):
        items = self.inputs if index is None else self.inputs[index]
        steps = 0.1 * torch.arange(4.0).view(1, 4, 1, 1, 1)
        return (items[:, None] + steps).flatten(0, 1)


def start(splits, *, labels="hard", step_size=None, kind=Direct, per_class=1):
    """The first items of every class."""
    first = [splits.train.members(group)[:per_class] for group in range(10)]
    batch = splits.train.select(torch.cat(first))
    own = HardLabels(batch.targets)
    if labels == "soft":
        own = SoftLabels(2 * torch.randn(10 * per_class, 10, generator=seeded(3)))
    return SyntheticSet(kind(batch.inputs), own, batch.groups, 10, step_size=step_size)


def step_sizes(*values):
    made = StepSize(1.0, len(values))
    made.log.data = torch.tensor(values).log()
    return made


# -- labels ----------------------------------------------------------------------------------------


def test_a_row_says_which_labels_it_was_trained_on(splits):
    rows = judge(splits).table(start(splits, labels="soft"))["mlp"]
    assert {name: row["labels"] for name, row in rows.items()} == {
        "synthetic": "soft",
        "random": "hard",
        "herding": "hard",
    }
    hard = judge(splits).table(start(splits), baselines=False)["mlp"]["synthetic"]
    assert hard["labels"] == "hard"
    assert "lr" not in hard


def test_hard_labels_of_a_soft_set_are_its_classes(splits):
    options = written(labels="hard", learners=3, lr=0.1)
    soft, hard = start(splits, labels="soft"), start(splits)
    found = judge(splits, **options).table(soft, baselines=False)["mlp"]["synthetic"]
    assert found == judge(splits, **options).table(hard, baselines=False)["mlp"]["synthetic"]
    options["evaluate.labels"] = "own"
    own = judge(splits, **options).table(soft, baselines=False)["mlp"]["synthetic"]
    assert own["values"] != found["values"]


def trained_on(monkeypatch):
    """Remember what every call of a trainer was given."""
    seen, original = [], Trainer.train

    def train(self, sets, *more):
        seen.append((self, list(sets)))
        return original(self, sets, *more)

    monkeypatch.setattr(Trainer, "train", train)
    return seen


@pytest.mark.parametrize("labels", ["own", "hard"])
def test_all_decoded_items_of_a_packed_set_are_trained_on(labels, splits, monkeypatch):
    packed = start(splits, labels="soft", kind=Four, per_class=2)
    seen = trained_on(monkeypatch)
    judged = judge(splits, **written(labels=labels))
    rows = judged.table(packed)["mlp"]
    (_, (batch, _)), (_, (random, _)), *_ = seen
    assert len(batch) == 80
    assert torch.equal(batch.groups, packed.groups.repeat_interleave(4))
    assert torch.allclose(batch.inputs[3], packed.representation.inputs[0] + 0.3)
    if labels == "own":
        probabilities = packed.labels.logits.softmax(dim=1)
        assert torch.allclose(batch.targets, probabilities.repeat_interleave(4, dim=0))
    else:
        assert torch.equal(batch.targets, batch.groups)
    # a baseline has the stored items: as many bytes, not as many decoded ones
    assert torch.equal(random.groups.bincount(), torch.full((10,), 2))
    assert all(0 <= value <= 1 for row in rows.values() for value in row["values"])


def test_items_are_mixed_as_the_modality_offers(splits, monkeypatch):
    judged, mixed = judge(splits, **{"evaluate.protocol": "idc"}), []

    def watched(inputs, partner, generator):
        mixed.append(len(inputs))
        return inputs, 1.0

    monkeypatch.setattr(judged.parts.modality, "mixers", {"cutmix": watched})
    judged.table(start(splits), baselines=False)
    assert set(mixed) == {10}
    monkeypatch.setattr(judged.parts.modality, "mixers", {})
    with pytest.raises(UserError, match=r"got 'cutmix'; expected one of mixup, none"):
        judged.table(start(splits))


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_training_sends_no_gradient_to_the_set(labels, splits):
    synthetic = start(splits, labels=labels)
    batch = detached(synthetic)
    assert not batch.inputs.requires_grad
    assert not batch.targets.requires_grad
    judge(splits).table(synthetic, baselines=False)
    assert all(leaf.grad is None for leaf in synthetic.leaves().values())


# -- learned step sizes ----------------------------------------------------------------------------


def test_every_row_of_a_table_has_the_learned_rate(splits, monkeypatch):
    synthetic = start(splits, step_size=step_sizes(0.0625))
    seen = trained_on(monkeypatch)
    judged = judge(splits, learned=True, **{"evaluate.full": True})
    rows = judged.table(synthetic)["mlp"]
    assert [trainer.protocol.lr for trainer, _ in seen[:3]] == [pytest.approx(0.0625)] * 3
    assert all(row["lr"] == [pytest.approx(0.0625)] for name, row in rows.items() if name != "full")
    assert "lr" not in rows["full"]
    assert seen[-1][0].protocol.lr == judged.options.resolved_full(1).lr
    said = judge(splits, **{"evaluate.lr": rows["synthetic"]["lr"][0]}).table(synthetic)["mlp"]
    for name in ("synthetic", "random", "herding"):
        assert said[name]["values"] == rows[name]["values"]


def test_a_set_without_a_step_size_is_refused_before_training(splits, monkeypatch):
    seen = trained_on(monkeypatch)
    judged = judge(splits, learned=True)
    with pytest.raises(UserError, match=r"learned step size, the set has none.*evaluate\.lr=0\.01"):
        judged.table(start(splits))
    assert not seen


def grouped(count):
    """A learner whose encoder has `count` groups of parameters."""
    with torch.random.fork_rng(devices=[]):
        encoder = nn.Sequential(*(nn.Linear(2, 2) for _ in range(max(count, 2))))
    if count > 1:
        encoder.parameter_groups = {str(k): [f"{k}.weight", f"{k}.bias"] for k in range(count)}
    return Learner(encoder, Classification())


@pytest.mark.parametrize(
    ("values", "groups", "lr", "rates"),
    [
        ([0.25], 1, 0.25, None),
        ([0.25], 3, 0.25, None),
        ([0.5, 0.02], 2, 0.1, [0.5, 0.02]),
        ([0.5, 0.02], 1, 0.1, None),
        ([0.5, 0.02], 3, 0.1, None),
        ([0.001, 0.1, 10.0], 2, 0.1, None),
    ],
)
def test_learned_rates_fit_the_learner(values, groups, lr, rates, splits):
    synthetic = start(splits, step_size=step_sizes(*values))
    asked = Protocol(epochs=3, lr="learned", batch_size=7)
    protocol, found = with_rates(asked, synthetic, grouped(groups))
    assert protocol == asked.model_copy(update={"lr": protocol.lr})
    assert protocol.lr == pytest.approx(lr)
    assert found == (None if rates is None else [pytest.approx(rate) for rate in rates])


def test_a_protocol_with_a_rate_reads_no_step_size(splits):
    asked = Protocol(epochs=3, lr=0.5)
    synthetic = start(splits, step_size=step_sizes(math.nan))
    assert with_rates(asked, synthetic, grouped(1)) == (asked, None)


# -- rows that are kept ----------------------------------------------------------------------------


def test_baselines_are_trained_once(splits, monkeypatch):
    seen = trained_on(monkeypatch)
    first = judge(splits).table(start(splits))["mlp"]
    assert len(seen) == 3
    again = judge(splits).table(start(splits))["mlp"]
    assert len(seen) == 4
    # to the bit, and to the type
    assert again == first
    assert json.dumps(again) == json.dumps(first)
    other = judge(splits).table(start(splits, labels="soft"))["mlp"]
    assert len(seen) == 5
    assert other["random"] == first["random"]
    assert other["synthetic"] != first["synthetic"]


def test_kept_rows_are_those_that_would_be_computed(splits, monkeypatch):
    first = judge(splits).table(start(splits))
    seen = trained_on(monkeypatch)
    monkeypatch.setenv("MMDD_RECOMPUTE", "1")
    assert judge(splits).table(start(splits)) == first
    assert len(seen) == 3
    monkeypatch.setenv("MMDD_RECOMPUTE", "0")
    judge(splits).table(start(splits))
    assert len(seen) == 4


class Counted(Judge):
    """A judge that trains nothing: a row is the number of rows computed so far."""

    computed: list[str] = []  # noqa: RUF012 - shared by all judges of a test on purpose

    def _score(self, trainer, sets, name):
        self.computed.append(name)
        count = float(len(self.computed))
        return {"mean": count, "std": 0.0, "n": 1, "values": [count], "labels": "hard"}


@pytest.fixture
def counted(splits, monkeypatch):
    monkeypatch.setattr(Counted, "computed", [])

    def table(per_class=1, encoder="mlp", learners=None, info=None, step_size=None, **options):
        recipe = composed(**options)
        parts = build.parts(recipe, info or splits.info, torch.device("cpu"))
        synthetic = start(splits, per_class=per_class, step_size=step_size)
        before = len(Counted.computed)
        Counted(parts, splits).table(synthetic, encoders=[encoder], learners=learners)
        # the synthetic row is always computed
        return Counted.computed[before + 1 :]

    return table


EVERY = ["mlp: random", "mlp: herding"]
CHANGES = {
    "learners": {"learners": 3},
    "counts per class": {"per_class": 2},
    "epochs": {"evaluate.epochs": 3},
    "rate": {"evaluate.lr": 0.5},
    "batch size": {"evaluate.batch_size": 3},
    "labels": {"evaluate.labels": "hard"},
    "selection": {"evaluate.selection": "validation"},
    "mixing": {"evaluate.mix": "mixup"},
    "whole protocol": {"evaluate.protocol": {"name": "quick", "momentum": 0.5}},
    "learned rate": {"learned": True, "step_size": step_sizes(0.03)},
    "augmentation": {"augment.strategy": "crop"},
    "own augmentation": {"evaluate.augment": {"kind": "dsa", "strategy": "crop"}},
    "precision": {"run.precision": "bfloat16"},
    "seed": {"run.seed": 1},
    "width": {"learner.width": 9},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_row_is_kept_for_its_key_alone(changed, counted):
    assert counted() == EVERY
    assert counted() == []
    assert counted(**CHANGES[changed]) == EVERY
    assert counted(**CHANGES[changed]) == []
    assert counted() == []


def test_rows_of_other_data_encoders_and_machines_are_not_taken(counted, splits, monkeypatch):
    assert counted() == EVERY
    other = dataclasses.replace(splits.info, fingerprint="0" * 64)
    assert counted(info=other) == EVERY
    assert counted(encoder="convnet") == ["convnet: random", "convnet: herding"]
    monkeypatch.setattr(results, "REVISION", 10**6)
    assert counted() == EVERY
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    assert counted() == EVERY
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert counted() == EVERY

    def compiled(parts, items, encoder=None, made=build.Parts.learner):
        learner = made(parts, items, encoder)
        learner.compiled = True
        return learner

    monkeypatch.setattr(build.Parts, "learner", compiled)
    assert counted() == EVERY


def test_informed_choices_depend_on_the_net_that_chooses(counted):
    counted(encoder="convnet")
    options = {"learner.encoder": "mlp", "learner.width": 9}
    # scored with the same convnet, but herded in features of another mlp
    assert counted(encoder="convnet", **options) == ["convnet: herding"]


def test_each_baseline_is_kept_by_itself(counted):
    assert counted(**{"evaluate.baselines": ["random"]}) == ["mlp: random"]
    assert counted(**{"evaluate.baselines": ["random", "k-center"]}) == ["mlp: k-center"]
    assert counted() == ["mlp: herding"]


def test_full_data_is_kept_and_left_out_by_the_clock(counted, monkeypatch):
    limit = {"evaluate.full": "auto", "evaluate.full_minutes": 5}
    monkeypatch.setattr(Judge, "_minutes", lambda *_: 6.0)
    assert counted(**limit) == EVERY
    monkeypatch.setattr(Judge, "_minutes", lambda *_: 4.0)
    assert counted(**limit) == ["mlp: full data"]
    # what is kept costs nothing, whatever the clock says
    monkeypatch.setattr(Judge, "_minutes", lambda *_: 6.0)
    assert counted(**limit) == []
    assert counted(**limit | {"evaluate.full_epochs": 3, "evaluate.full": True}) == [
        "mlp: full data"
    ]


def test_full_data_that_is_left_out_is_said(splits, monkeypatch):
    said = []
    progress = Progress()
    progress.say = said.append
    monkeypatch.setattr(Judge, "_minutes", lambda *_: 700.0)
    judged = judge(splits, **{"evaluate.full": "auto", "evaluate.baselines": []})
    judged.progress = progress
    assert set(judged.table(start(splits))["mlp"]) == {"synthetic"}
    assert "about 700 minutes (limit 10)" in said[0]


def test_a_spoilt_file_is_computed_anew(folder):
    assert remembered("rows", {"a": 1}, lambda: {"values": [0.1]}) == {"values": [0.1]}
    (kept,) = (folder / "rows").iterdir()
    for content in ("", "{", "[1]", '{"other": 1}', "null"):
        kept.write_text(content)
        assert remembered("rows", {"a": 1}, lambda: {"values": [0.2]}) == {"values": [0.2]}
        assert json.loads(kept.read_text()) == {"values": [0.2]}


def test_every_bit_of_a_float_is_kept():
    values = [*torch.rand(200, generator=seeded(0), dtype=torch.float64).tolist(), 1e-17]
    remembered("rows", {"a": 2}, lambda: {"values": values})
    assert remembered("rows", {"a": 2}, pytest.fail)["values"] == values


def test_nothing_is_kept_of_a_row_that_was_left_out(folder):
    assert remembered("rows", {"a": 3}, lambda: None) is None
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "file"))
    assert remembered("rows", {}, lambda: {"values": [1]}) == {"values": [1]}
    assert remembered("rows", {}, lambda: {"values": [2]}) == {"values": [2]}


def test_random_sets_are_the_same_at_another_number_of_learners(splits):
    counts = torch.full((10,), 3)
    few = judge(splits).chosen("random", counts, 2)
    many = judge(splits).chosen("random", counts, 4)
    for a, b in zip(few, many, strict=False):
        assert torch.equal(a.inputs, b.inputs)
    for a, b in itertools.combinations(many, 2):
        assert not torch.equal(a.inputs, b.inputs)


# -- what reads a table ----------------------------------------------------------------------------


def test_rows_with_labels_and_rates_are_shown(splits, capsys):
    judged = judge(splits, learned=True)
    rows = judged.table(start(splits, labels="soft", step_size=step_sizes(0.05)))
    report = {
        "metric": "accuracy",
        "direction": "max",
        "selection": "last",
        "protocol": judged.protocol.model_dump(),
        "budget": {"items": 10, "bytes": 2560},
        "results": rows,
    }
    text = f"{100 * rows['mlp']['random']['mean']:.1f} ± {100 * rows['mlp']['random']['std']:.1f}"
    show_results(report)
    assert text in capsys.readouterr().out
    made = card({"results": report})
    assert text in made
    assert "sgd learned" in made


# -- the honest number -----------------------------------------------------------------------------


def test_the_test_split_is_read_only_when_training_is_over(monkeypatch, splits):
    events = []
    original_train, original_read = Trainer.train, ResidentData.read

    def train(self, *words, **more):
        events.append("train")
        found = original_train(self, *words, **more)
        events.append("trained")
        return found

    def read(self, index):
        if self is splits.test:
            events.append("test")
        return original_read(self, index)

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(ResidentData, "read", read)
    judged = judge(splits, **{"evaluate.selection": "validation"})
    table = judged.table(start(splits))
    assert set(table["mlp"]) == {"synthetic", "random", "herding"}
    assert "test" in events
    for event, after in itertools.pairwise(events):
        assert (event == "train") == (after == "trained"), "test was read during training"


# -- which split -----------------------------------------------------------------------------------


def test_scores_on_validation_are_of_validation_and_kept_apart(splits, folder):
    on = {}
    for split in ("test", "validation"):
        made = judge(splits)
        on[split] = Judge(made.parts, splits, split=split).table(start(splits))["mlp"]
    sizes = {
        name: len(part) for name, part in (("test", splits.test), ("validation", splits.validation))
    }
    assert sizes["test"] != sizes["validation"]
    for split, rows in on.items():
        for name in ("synthetic", "random"):
            for value in rows[name]["values"]:
                right = value * sizes[split]
                assert right == pytest.approx(round(right)), (split, name)
    assert on["test"]["random"]["values"] != on["validation"]["random"]["values"]
    assert len(list((folder / "random").iterdir())) == 2


def test_a_split_that_is_not_there_is_said(splits):
    made = judge(splits)
    without = dataclasses.replace(splits, validation=None)
    with pytest.raises(UserError, match="no validation split"):
        Judge(made.parts, without, split="validation")
