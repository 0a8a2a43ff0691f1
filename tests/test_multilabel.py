"""Several labels of one item: losses and scores by formula, label columns, groups, whole runs."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from text_sets import BAD, GOOD, PLAIN, opened

import mmdd
from mmdd.artifact import export
from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.labels import SoftLabels
from mmdd.modalities.tables.labels import CLASSES
from mmdd.modalities.tables.sets import ClassesOrSets, label_sets, of_lists, rarest
from mmdd.modalities.text.raw import WORDS
from mmdd.targets import label_kind, labelled
from mmdd.tasks.classification import Classification
from mmdd.tasks.multilabel import MultiLabel
from mmdd.teacher import wanted_logits

NAMES = ["good", "bad", "odd"]
MARKS = (GOOD, BAD, ("odd", "quaint"))


def texts(count, seed=0):
    """Texts with words of 0 to 3 labels, the last of them rare, and these labels."""
    rng = np.random.default_rng(seed)
    found, lists = [], []
    for number in range(count):
        own = [place for place, share in enumerate((0.4, 0.4, 0.15)) if rng.random() < share]
        own = [number % 3] if number < 6 else own
        words = [*rng.choice(PLAIN, 4), *(rng.choice(MARKS[place]) for place in own)]
        found.append(" ".join(rng.permutation(words)))
        lists.append(own)
    return found, lists


def table(count, seed=0):
    rows, lists = texts(count, seed)
    made = datasets.Dataset.from_dict({"text": rows, "labels": lists})
    return made.cast_column("labels", datasets.List(datasets.ClassLabel(names=NAMES)))


def numbers(count=20, classes=4, seed=0):
    stream = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=stream)
    return logits, torch.rand(count, classes, generator=stream) < 0.4


# -- the task --------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_sum_of_binary_cross_entropies(soft):
    logits, targets = numbers()
    wanted = (0.2 + 0.6 * targets.float()) if soft else targets
    p, y = torch.sigmoid(logits.double()), wanted.double()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).sum(dim=1)
    torch.testing.assert_close(MultiLabel().item_losses(logits, wanted), expected.float())


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    task = MultiLabel()
    for seed in range(3):
        logits, targets = numbers(seed=seed)
        targets[:, 3] = False  # a label that none has
        told = logits > 0
        truth = [side.numpy() for side in (targets, told)]
        assert task.score(logits, targets) == pytest.approx(f1_score(*truth, average="micro"))
        more = task.extras(logits, targets)
        macro = f1_score(*truth, average="macro", zero_division=0)
        assert more["macro-F1"] == pytest.approx(macro)
        assert more["subset accuracy"] == pytest.approx(accuracy_score(*truth))
        assert more["labels per item"] == pytest.approx(told.sum().item() / len(told))
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    assert task.score(torch.full((3, 2), -1.0), nothing) == 0


def test_labels_of_each_class_have_a_sigmoid_of_their_own():
    logits, targets = numbers(5)
    made = SoftLabels(logits, temperature=2.0, independent=True)
    index = torch.tensor([3, 0])
    torch.testing.assert_close(made.attach(index, None, 1)[1], (logits[index] / 2).sigmoid())
    hard = Batch(None, targets, torch.zeros(5).long())
    assert torch.equal(wanted_logits(hard, 4, 3.0), torch.where(targets, 3.0, -3.0))
    assert label_kind(hard, MultiLabel()) == "hard"
    soft = Batch(None, made.attach(None, None, 1)[1], hard.groups)
    assert label_kind(soft, MultiLabel()) == "soft"
    assert torch.equal(labelled(soft, MultiLabel(), "hard").targets, logits >= 0)
    assert labelled(hard, MultiLabel(), "hard") is hard
    # an item's group stands for its class only where it has one
    assert torch.equal(labelled(soft, Classification(), "hard").targets, hard.groups)


# -- columns ---------------------------------------------------------------------------------------


def test_groups_are_the_rarest_labels():
    members = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    assert rarest(members, members.sum(axis=0)).tolist() == [1, 2, 0, 3, 1]
    made = label_sets(members, ["a", "b", "c"], np.array([1, 1, 1, 0, 1], bool))
    assert made.codes.tolist() == [1, 2, 0, -1, 1]
    assert made.names == ("a", "b", "c")
    assert made.known == 4
    assert made.in_terms_of(("x",)).codes.tolist() == [0, 0, 0, -1, 0]


@pytest.mark.parametrize(
    ("rows", "labels", "members"),
    [
        ([["b", "a"], [], None, ["a"]], ("a", "b"), [[1, 1], [0, 0], [0, 0], [1, 0]]),
        ([[3, 5], [5], [7, 3]], ("3", "5", "7"), [[1, 1, 0], [0, 1, 0], [1, 0, 1]]),
        ([[1, 0, 1], [0, 0, 1]], ("0", "1", "2"), [[1, 0, 1], [0, 0, 1]]),
        ([[1], [0], [0, 1]], ("0", "1"), [[0, 1], [1, 0], [1, 1]]),
    ],
)
def test_lists_of_labels(rows, labels, members):
    made = ClassesOrSets().of_values(rows, WORDS)
    assert made.labels == labels
    assert made.members.astype(int).tolist() == members
    assert (made.codes == -1).tolist() == [row is None for row in rows]


def test_arrays_of_zeros_and_ones():
    array = torch.tensor([[1, 0], [1, 1], [0, 0]])
    assert ClassesOrSets().of_values(array, WORDS).members.tolist() == array.bool().tolist()
    with pytest.raises(UserError, match=r"argmax\(1\)"):
        ClassesOrSets().of_values(torch.eye(3), WORDS)
    assert ClassesOrSets(sets=True).of_values(torch.eye(3), WORDS).members.sum() == 3
    with pytest.raises(UserError, match="are not 0 and 1"):
        ClassesOrSets(sets=True).of_values(torch.full((2, 3), 0.5), WORDS)
    one_each = ClassesOrSets().of_values(["a", "b", "a"], WORDS)
    assert one_each.codes.tolist() == CLASSES.of_values(["a", "b", "a"], WORDS).codes.tolist()


def test_a_list_may_be_cut_from_a_longer_table():
    made = datasets.Dataset.from_dict({"tags": [["x"], ["y", "x"], [], ["y"]]}).select([1, 3])
    column = made.with_format("arrow")[:].column("tags")
    assert of_lists(column, made.features["tags"].feature, "tags").members.tolist() == [
        [True, True], [False, True],
    ]  # fmt: skip


def test_a_column_of_lists_makes_texts_multi_label():
    source = datasets.DatasetDict({"train": table(90), "test": table(40, seed=1)})
    splits = opened(source, hidden=8, validation=20)
    info, train = splits.info, splits.train
    assert info.task == "multi-label"
    assert info.columns["label"] == "labels"
    assert info.names == (*NAMES, "(no label)")
    assert info.normalisation["labels"] == 3
    assert sum("any number of the 3 labels" in note for note in info.notes) == 1
    assert train.targets.dtype == torch.bool
    assert (len(train), len(splits.validation), len(splits.test)) == (70, 20, 40)
    expected = rarest(train.targets.numpy(), train.targets.sum(dim=0).numpy())
    assert train.groups.tolist() == expected.tolist()
    for words, own in zip(train.words, train.targets, strict=True):
        assert [bool(set(words.split()) & set(mark)) for mark in MARKS] == own.tolist()
    truth = table(40, seed=1)["labels"]
    assert [row.nonzero().flatten().tolist() for row in splits.test.targets] == list(truth)


def test_columns_of_zeros_and_ones_are_labels():
    rows, lists = texts(60)
    flags = {name: [int(place in own) for own in lists] for place, name in enumerate(NAMES)}
    made = datasets.Dataset.from_dict({"text": rows, **flags})
    keep = {"validation": 0, "test": 0.0}
    info = opened(made, labels=NAMES, hidden=8, **keep).info
    assert info.names[:3] == tuple(NAMES)
    assert info.columns["label"] == "good, bad, odd"
    with pytest.raises(UserError, match="'text' holds other values than 0 and 1"):
        opened(made, labels=["good", "text"], **keep)
    with pytest.raises(UserError, match=r"unknown label column 'goods'.*Did you mean 'good'"):
        opened(made, labels=["goods", "bad"], **keep)
    with pytest.raises(ValueError, match="give one of them"):
        opened(made, labels=NAMES, label="good")


def test_one_class_per_text_stays_classification():
    rows, lists = texts(60)
    made = datasets.Dataset.from_dict({"text": rows, "label": [len(own) for own in lists]})
    both = made.add_column("labels", [[str(own)] for own in lists])
    assert opened(both, hidden=8).info.task == "classification"
    assert opened(both, hidden=8, label="labels").info.task == "multi-label"
    assert opened(both, hidden=8, task="multi-label").info.task == "multi-label"
    with pytest.raises(UserError, match="no column holds several labels per text"):
        opened(made, hidden=8, task="multi-label")


def test_labels_without_training_items_are_left_out():
    source = {
        "train": (["a", "b", "c", "d"], [["x"], ["y", "x"], ["y"], []]),
        "test": (["e", "f"], [["x", "z"], ["z"]]),
    }
    splits = opened(source, hidden=4, validation=0)
    assert splits.info.names == ("x", "y", "(no label)")
    assert splits.test.targets.tolist() == [[True, False], [False, False]]
    named = datasets.Dataset.from_dict({"text": ["a", "b"] * 5, "labels": [[0], [2]] * 5})
    named = named.cast_column("labels", datasets.List(datasets.ClassLabel(names=NAMES)))
    info = opened(named, hidden=4, validation=0, test=0.0).info
    assert info.names == ("good", "odd")
    assert any("1 of 3 labels are of no training item" in note for note in info.notes)


# -- whole runs ------------------------------------------------------------------------------------

SOURCE = {"train": texts(120), "test": texts(50, seed=1)}
TINY = {
    "modality": "text", "data.validation": 0, "data.hidden": 8, "run.threads": 1,
    "evaluate.protocol": "quick", "evaluate.epochs": 40, "evaluate.full": False,
}  # fmt: skip


def distilled(method="dm", out=None, source=SOURCE, steps=3, **more):
    given = {k: more.pop(k) for k in ("per_class", "items") if k in more} or {"items": 12}
    options = {**TINY, "learner.encoder": "mlp", "learner.width": 16, **more}
    return mmdd.distill(
        source, method=method, steps=steps, options=options, device="cpu", out=out, **given
    )


def test_a_set_keeps_its_labels_and_is_judged_beside_real_texts(tmp_path):
    datasets.disable_progress_bars()
    source = datasets.DatasetDict({"train": table(120), "test": table(50, seed=1)})
    made = distilled(out=tmp_path / "set", source=source)
    assert made.recipe.task == "multi-label"
    targets = made.synthetic.batch().targets
    assert targets.dtype == torch.bool
    assert torch.equal(made.synthetic.labels.targets, targets)
    assert targets.any(dim=0).all(), "every label is in the set"
    found = mmdd.load(tmp_path / "set")
    assert torch.equal(found.synthetic.batch().targets, targets)
    result = found.evaluate(data=source, learners=2)
    assert result["metric"] == "micro-F1"
    rows = result["results"]["mlp"]
    assert set(rows) == {"synthetic", "random", "herding"}
    assert {row["labels"] for row in rows.values()} == {"hard"}
    assert set(rows["random"]["extras"]) == {"macro-F1", "subset accuracy", "labels per item"}
    assert export(tmp_path / "set", "parquet", tmp_path / "out")
    columns = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert columns.features["labels"] == datasets.List(datasets.ClassLabel(names=NAMES))
    assert columns["labels"][:] == [row.nonzero().flatten().tolist() for row in targets]
    assert (tmp_path / "set" / "picture.png").stat().st_size > 10_000


MTT = {
    "experts.count": 1, "experts.epochs": 2, "experts.lr": 0.05, "objective.steps": 2,
    "source.max_start": 1, "source.length": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("dc", {"source.outer": 2, "source.inner": 1}),
        ("mtt", {**MTT, "synthetic.labels": "soft"}),
        ("mtt", {**MTT, "synthetic.labels": "teacher"}),
        ("attention-labels", {**MTT, "learner": {"encoder": "transformer", "width": 8}}),
    ],
    ids=["gradient", "soft", "teacher", "attention"],
)
def test_other_objectives_and_labels(method, more):
    rate = {"evaluate.lr": 0.01, "optimise.labels.lr": 0.5}
    made = distilled(method, **rate, **more)
    state = made.synthetic.state_dict()
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    with torch.no_grad():
        targets = made.synthetic.batch().targets
    targets = targets["classes"] if isinstance(targets, dict) else targets
    assert targets.shape == (12, 3)
    if method == "dc":
        assert targets.dtype == torch.bool
        return
    assert ((targets > 0) & (targets < 1)).all()
    # independent: no softmax would let an item have two labels and another none
    assert float(targets.sum(dim=1).max() - targets.sum(dim=1).min()) > 0.01
    scores = made.evaluate(data=SOURCE, learners=2, baselines=False)["results"]
    assert 0 <= next(iter(scores.values()))["synthetic"]["mean"] <= 1


def test_a_budget_by_class_is_the_most_items_of_a_group():
    made = distilled(per_class=30, steps=1)
    sizes = made._splits.train.group_sizes
    assert made.synthetic.groups.bincount().tolist() == sizes.clamp_max(30).tolist()
    with pytest.raises(UserError, match="fewer synthetic items than classes"):
        distilled(items=2, steps=1)
    with pytest.raises(UserError, match="these data were opened for"):
        distilled(steps=1, task="regression")
