"""A set that goes on from an earlier one: what is kept, what is refused, and where it is told."""

from __future__ import annotations

import shutil

import pytest
import torch
from fakes import stopped_after
from test_cli import mmdd as run
from test_method_cli import SHORT
from test_multilabel import distilled as of_texts

import mmdd
from mmdd import build
from mmdd.compose import from_flags, parse_overrides
from mmdd.errors import UserError
from mmdd.trees import tree_leaves

DM = {**SHORT, "synthetic.per_class": 2}
MTT = {
    **DM,
    "experts.count": 1,
    "experts.epochs": 2,
    "experts.epoch_steps": 2,
    "source.length": 1,
    "source.max_start": 1,
    "objective.steps": 2,
}


def made(folder, method="dm", steps=1, data="digits", **more):
    options = {**(MTT if method in ("mtt", "datm") else DM), **more}
    if method == "datm":
        options |= {"source.first_max_start": 1, "objective.skip_above": None}
    return mmdd.distill(data, method=method, steps=steps, options=options, out=folder)


def begun(method="dm", **more):
    """The set at its start, as a run of this recipe makes it."""
    options = {**(MTT if method in ("mtt", "datm") else DM), **more}
    if method == "datm":
        options |= {"source.first_max_start": 1, "objective.skip_above": None}
    recipe = from_flags("digits", method=method, options=options)
    splits = build.open_data(recipe, None, torch.device("cpu"))
    parts = build.parts(build.fitted(recipe, splits.info), splits.info, torch.device("cpu"))
    experts = build.experts(parts, splits)
    return build.distiller(parts, splits, experts).synthetic


def same(a, b):
    a, b = (x.state_dict() for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished set of two digits per class, moved far from real ones."""
    folder = tmp_path_factory.mktemp("first") / "set"
    made(folder, steps=3, **{"optimise.inputs.lr": 5.0})
    return folder


# -- what goes on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["direct", "packed", "basis", "frequency"])
def test_a_set_of_the_same_representation_goes_on_as_it_was(kind, tmp_path):
    options = {"synthetic.representation": {"kind": kind}}
    before = made(tmp_path / "set", **options)
    after = begun(**options, **{"synthetic.initialise": str(tmp_path / "set")})
    assert same(before.synthetic, after)


def test_items_are_coded_anew_for_another_representation(first, tmp_path):
    items = mmdd.load(first).to_torch().inputs
    after = begun(
        **{
            "synthetic.initialise": str(first),
            "synthetic.representation": {"kind": "frequency", "keep": 1.0},
        }
    )
    torch.testing.assert_close(after.batch().inputs, items, rtol=1e-4, atol=1e-4)


def test_packed_items_start_from_as_many_as_they_have_parts(tmp_path):
    made(tmp_path / "eight", **{"synthetic.per_class": 8})
    packed = {"synthetic.representation": {"kind": "packed"}, "synthetic.per_class": 2}
    after = begun(**packed, **{"synthetic.initialise": str(tmp_path / "eight")})
    items = mmdd.load(tmp_path / "eight").to_torch()
    # the first part of the first item is the first item, shrunk by averaging
    small = torch.nn.functional.avg_pool2d(items.inputs[:1], 2)[0]
    torch.testing.assert_close(after.leaves()["inputs"][0, :, :4, :4].detach(), small)
    assert after.batch().targets.tolist() == items.targets.tolist()
    with pytest.raises(UserError, match="other numbers of items") as raised:
        begun(
            **packed | {"synthetic.per_class": 1, "synthetic.initialise": str(tmp_path / "eight")}
        )
    assert "got 8; expected 4 items of class '0'" in str(raised.value)


def test_another_method_with_labels_of_its_own_takes_the_items(first):
    items = mmdd.load(first).to_torch().inputs
    after = begun("datm", **{"synthetic.initialise": str(first)})
    assert torch.equal(after.batch().inputs, items)
    assert after.labels.kind == "soft"


def test_learned_labels_and_rates_go_on_with_the_items(tmp_path):
    before = made(tmp_path / "set", "datm", steps=3, **{"synthetic.step_size": 0.05})
    assert float(before.synthetic.step_size.values().detach()) != pytest.approx(0.05, rel=1e-6)
    after = begun("datm", **{"synthetic.initialise": str(tmp_path / "set")})
    assert same(before.synthetic, after)


def test_classes_of_an_item_go_on_with_it(tmp_path):
    before = of_texts(out=tmp_path / "set")
    # the run itself keeps them, and moves the items
    after = of_texts(steps=2, **{"synthetic.initialise": str(tmp_path / "set")})
    ours, theirs = before.synthetic.batch(), after.synthetic.batch()
    assert torch.equal(ours.targets, theirs.targets)
    assert torch.equal(ours.groups, theirs.groups)
    pairs = zip(tree_leaves(ours.inputs), tree_leaves(theirs.inputs), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


# -- whole runs ------------------------------------------------------------------------------------


def test_a_run_tells_what_it_began_with_and_needs_it_no_more(first, tmp_path, monkeypatch):
    shutil.copytree(first, tmp_path / "dm set")
    monkeypatch.chdir(tmp_path)
    # a folder's name alone is found where the run begins, and kept whole
    second = made(tmp_path / "second", **{"synthetic.initialise": "dm set"})
    assert second.recipe.synthetic.initialise == str(tmp_path / "dm set")
    third = made(tmp_path / "third", **{"synthetic.initialise": "second"})
    seconds = [mmdd.load(folder).run["seconds"] for folder in (first, tmp_path / "second")]
    told = third.run["begun_with"]
    assert (told["method"], told["steps"]) == ("dm", 1)
    assert told["seconds"] == pytest.approx(sum(seconds), abs=0.01)
    card = (tmp_path / "third" / "README.md").read_text()
    assert f"| begun with | a set made by dm in {sum(seconds):.1f} s |" in card
    assert "initialise: second\n" in card, "no folders of this machine"
    code, out, err = run("show", tmp_path / "third")
    assert code == 0, err
    assert "begun with   a set made by dm in " in out

    shutil.rmtree(tmp_path / "dm set")
    monkeypatch.chdir("/")
    again = mmdd.load(tmp_path / "second")
    assert same(again.synthetic, second.synthetic)
    assert again.evaluate(baselines=False)["results"]["convnet"]["synthetic"]["mean"] > 0


def test_a_run_that_goes_on_resumes_with_the_same_bits(first, tmp_path):
    options = {"synthetic.initialise": str(first), "run.checkpoint_seconds": 0}
    whole = made(None, steps=4, **options)
    with stopped_after(2):
        made(tmp_path / "run", steps=4, **options)
    assert same(whole.synthetic, mmdd.resume(tmp_path / "run").synthetic)


# -- what is refused, before any work --------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("hearding", r"unknown start or folder 'hearding'.*Did you mean 'herding'\?"),
        ("no/such/folder", "synthetic.initialise: there is no folder 'no/such/folder'"),
    ],
)
def test_a_wrong_name_is_told_apart_from_a_wrong_folder(how, message, tmp_path):
    with pytest.raises(UserError, match=message):
        made(tmp_path / "out", **{"synthetic.initialise": how})
    assert not (tmp_path / "out").exists()


def test_a_set_that_does_not_fit_is_refused_before_anything_is_written(first, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    stranger = tmp_path / "stranger"
    pictures, classes = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    made(stranger, data=(pictures, classes), **{"data.validation": 0})
    for options, message in (
        ({"synthetic.initialise": str(empty)}, "holds no distilled set"),
        ({"synthetic.initialise": str(stranger)}, "was made from other data"),
        ({"synthetic.initialise": str(first), "data.seed": 3}, "made from other data"),
        (
            {"synthetic.initialise": str(first), "synthetic.per_class": 3},
            "got 2; expected 3 items of class '0'.*Give the same budget",
        ),
    ):
        with pytest.raises(UserError, match=message):
            made(tmp_path / "out", "mtt", **options)
        assert not (tmp_path / "out").exists()


def test_names_of_starts_stay_what_they_were():
    for how in ("real", "herding", "k-center", "k-means", "noise"):
        options = parse_overrides([f"synthetic.initialise={how}"])
        assert from_flags("digits", method="dm", options=options).synthetic.initialise == how
