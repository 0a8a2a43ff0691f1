"""Every objective with every source, labels and representation, as far as the recipe allows it.

A method is a composition; here each composition takes steps, whether or not somebody has published
it. On pictures a recipe is built as a run builds it; on the fakes of other kinds of data the same
parts are put together by hand.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fakes import CASES, Case

from mmdd import build, catalog, machine
from mmdd.assembly import restore
from mmdd.distiller import Distiller
from mmdd.errors import UserError
from mmdd.expert_options import Recording
from mmdd.experts import Experts
from mmdd.labels import Labels, SoftLabels
from mmdd.modality import Splits
from mmdd.parts import Parts
from mmdd.recipe import Recipe, validate
from mmdd.start import start_items
from mmdd.synthetic import SyntheticSet
from mmdd.teacher import Teacher
from mmdd.trees import tree_map

OBJECTIVES: dict[str, dict[str, Any]] = {
    "distribution": {},
    "gradient": {},
    "trajectory": {"steps": 2},
    "cross-entropy": {},
}
SOURCES: dict[str, dict[str, Any]] = {
    "fresh": {},
    "synthetic-trained": {"outer": 3, "inner": 1},
    "real-trained": {"updates": 1, "batch_size": 16},
    "pool": {"start": 2, "students": 1, "updates": 1, "batch_size": 16},
    "interpolated": {},
    "experts": {"length": 1},
}
REPRESENTATIONS: dict[str, dict[str, Any]] = {
    "direct": {},
    "packed": {},
    "basis": {"bases": 3},
    "frequency": {},
}
LABELS = ("hard", "soft", "teacher")
# parts that are of graphs, series, clips or pairs alone are tested in their rooms
OF_ONE_MODALITY = {"pairwise", "bernoulli", "low-rank", "series", "static-dynamic", "key-frames"}
OF_ONE_TASK = {"relation"}
OF_SOME_NETS = {"attention"}
WITH_A_TRAINED_NET = ("real-trained", "pool", "interpolated", "experts")
EXPERTS = {"count": 2, "epochs": 2, "epoch_steps": 2, "batch_size": 16, "lr": 0.1}


@dataclasses.dataclass(frozen=True)
class Composition:
    """Names of the four parts."""

    objective: str
    source: str
    labels: str
    representation: str

    def __str__(self) -> str:
        return f"{self.objective}-{self.source}-{self.labels}-{self.representation}"

    def values(self) -> dict[str, Any]:
        """The sections of a recipe."""
        objective = {"kind": self.objective, **OBJECTIVES[self.objective]}
        if self.objective == "cross-entropy":
            objective["at"] = "trained" if self.source in WITH_A_TRAINED_NET else "drawn"
        synthetic: dict[str, Any] = {
            "labels": {"kind": self.labels, **({"every": 1} if self.labels == "teacher" else {})},
            "representation": {
                "kind": self.representation,
                **REPRESENTATIONS[self.representation],
            },
        }
        if self.objective == "trajectory":
            synthetic["step_size"] = 0.05
        source = {"kind": self.source, **SOURCES[self.source]}
        return {
            "objective": objective,
            "source": source,
            "synthetic": synthetic,
            "experts": EXPERTS,
        }

    def cannot_be(self) -> str | None:
        """Why the parts do not fit together; None where they do."""
        if self.objective == "trajectory" and self.source != "experts":
            return "the other sources have no target to arrive at"
        if self.objective == "distribution" and self.labels == "soft":
            return "features do not depend on labels, so that none would be learned"
        return None


PRODUCT = [
    Composition(*names) for names in itertools.product(OBJECTIVES, SOURCES, LABELS, REPRESENTATIONS)
]
POSSIBLE = [composition for composition in PRODUCT if composition.cannot_be() is None]


def test_the_product_is_of_everything_that_is_listed():
    assert set(OBJECTIVES) | {"penalty"} == set(catalog.OBJECTIVES)
    assert set(SOURCES) == set(catalog.SOURCES)
    assert set(REPRESENTATIONS) | OF_ONE_MODALITY == set(catalog.REPRESENTATIONS)
    assert set(LABELS) | OF_ONE_TASK | OF_SOME_NETS == set(catalog.LABELS)


def refusal(composition: Composition) -> str | None:
    """The line that a recipe of these parts is refused with."""
    try:
        validate(composition.values(), str(composition))
    except UserError as error:
        return str(error)
    return None


def test_the_recipe_refuses_what_cannot_be_and_nothing_else():
    for composition in PRODUCT:
        line = refusal(composition)
        assert (line is None) == (composition.cannot_be() is None), line or str(composition)
        assert line is None or "\n" not in line


# -- what every composition does -------------------------------------------------------------------


def bits(run: Distiller) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.synthetic.state_dict().items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def assert_composes(begin: Callable[[], Distiller], composition: Composition) -> Distiller:
    """Two steps with finite losses and gradients, the same again, and the same after a break."""
    run = begin()
    losses = [run.step()]
    leaves = run.synthetic.leaves()
    assert ("labels.logits" in leaves) == (composition.labels == "soft")
    assert ("step_size" in leaves) == (composition.objective == "trajectory")
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name
        assert leaf.grad.abs().sum() > 0, name
    first, state = bits(run), copy.deepcopy(run.state_dict())
    losses.append(run.step())
    assert all(abs(loss) < float("inf") for loss in losses)
    # nothing may depend on what the process drew before
    torch.rand(3)
    again = begin()
    assert again.step() == losses[0]
    assert_same_bits(bits(again), first)
    late = begin()
    late.load_state_dict(state)
    assert late.step() == losses[1]
    assert_same_bits(bits(late), bits(run))
    return run


# -- pictures, as a recipe builds them -------------------------------------------------------------


def recipe_of(composition: Composition) -> Recipe:
    values = composition.values()
    values["synthetic"]["per_class"] = 2
    return validate(
        {
            **values,
            "data": {"source": "digits"},
            "learner": {"encoder": "convnet", "width": 8},
            "augment": {"kind": "dsa"},
            "real": {"per_group": 4},
            "optimise": {"steps": 2, "inputs": {"lr": 0.1}, "labels": {"lr": 0.1}},
            "run": {"device": "cpu", "precision": "float32", "compile": False},
        },
        str(composition),
    )


@pytest.fixture(scope="module", autouse=True)
def uncounted() -> Iterator[None]:
    """Precision and compilation are given: nothing depends on the arithmetic of a net."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "flops_per_item", lambda encoder, example: 0.0)
        yield


@pytest.fixture(scope="module")
def digits() -> Splits:
    """Three classes of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    pixels, truth = load_digits(n_class=3, return_X_y=True)
    pixels = (255 / 16 * torch.tensor(pixels[:180])).to(torch.uint8).view(-1, 1, 8, 8)
    pair = (pixels, torch.tensor(truth[:180]).long())
    return build.open_data(recipe_of(POSSIBLE[0]), pair, torch.device("cpu"))


def parts_of(composition: Composition, splits: Splits) -> Parts:
    return build.parts(recipe_of(composition), splits.info, torch.device("cpu"))


@pytest.fixture(scope="module")
def digit_experts(digits, tmp_path_factory) -> Experts:
    parts = parts_of(POSSIBLE[0], digits)
    folder = str(tmp_path_factory.mktemp("digits"))
    section = parts.recipe.experts.model_copy(update={"folder": folder})
    recipe = parts.recipe.model_copy(update={"experts": section})
    return build.record_experts(dataclasses.replace(parts, recipe=recipe), digits)


@pytest.mark.parametrize("composition", POSSIBLE, ids=str)
def test_on_pictures(composition, digits, digit_experts):
    parts = parts_of(composition, digits)
    found = digit_experts if build.needs_experts(parts.recipe) else None
    run = assert_composes(lambda: build.distiller(parts, digits, found), composition)
    # what is stored is the whole set
    restored = restore(parts, bits(run))
    assert_same_bits(dict(restored.state_dict()), bits(run))
    assert list(restored.leaves()) == list(run.synthetic.leaves())
    ours, theirs = run.synthetic.batch(), restored.batch()
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.parametrize("initialise", ["experts", "classes"])
@pytest.mark.parametrize("representation", ["direct", "packed"])
def test_labels_start_with_the_experts_or_without(
    initialise, representation, digits, digit_experts
):
    composition = Composition("trajectory", "experts", "soft", representation)
    parts = parts_of(composition, digits)
    labels = parts.recipe.synthetic.labels.model_copy(
        update={"initialise": initialise, "margin": 2.5}
    )
    synthetic = parts.recipe.synthetic.model_copy(update={"labels": labels})
    recipe = parts.recipe.model_copy(update={"synthetic": synthetic})
    # the source reads the experts, so that they are at hand either way
    run = build.distiller(dataclasses.replace(parts, recipe=recipe), digits, digit_experts)
    found, groups = run.synthetic.labels.logits.detach(), run.synthetic.groups
    if initialise == "classes":
        assert torch.equal(found, 2.5 * torch.nn.functional.one_hot(groups, 3))
        return
    batch = run.synthetic.batch()
    each = Teacher(run.learner, digit_experts).start(batch, 2.5)
    parts_of_item = len(batch) // len(groups)
    for item, row in enumerate(found):
        own = each[parts_of_item * item : parts_of_item * (item + 1)]
        torch.testing.assert_close(row, own.mean(dim=0))


def test_a_small_class_gives_its_items_in_turns(digits):
    parts = parts_of(Composition("distribution", "fresh", "hard", "packed"), digits)
    members = [digits.train.members(group)[:size] for group, size in enumerate((3, 40, 8))]
    data = digits.train.subset(torch.cat(members))
    items = start_items(parts, data, torch.tensor([8, 4, 8]))
    inputs = [items[:8], items[8:12], items[12:]]
    for group, rows in enumerate(inputs):
        own = data.select(data.members(group)).inputs
        places = [int((own == row).flatten(1).all(dim=1).nonzero()[0]) for row in rows]
        assert len(set(places)) == min(len(rows), len(own))
    assert torch.equal(inputs[0][:3], inputs[0][3:6])
    assert torch.equal(inputs[0][:2], inputs[0][6:])


# -- other kinds of data, put together by hand -----------------------------------------------------

NOT_PACKED = "an item has no axes of space to cut"
UNFIT = {
    ("joint", "packed"): NOT_PACKED,
    ("masked", "packed"): "the axes of an item are positions, which the mask counts, and features",
    ("coupled", "packed"): NOT_PACKED,
}
LABELS_OF = {
    "joint": ("hard", "soft", "teacher"),
    "masked": ("hard", "soft", "teacher"),
    # a pair's target is its partner: nothing to learn or to ask a teacher for
    "coupled": ("hard",),
}


# what a source trains on is decoded: on pictures every one of them meets every representation
ENOUGH_SOURCES = ("fresh", "synthetic-trained", "experts")


def fits(name: str, composition: Composition) -> bool:
    """Whether the composition makes sense for this kind of data, and says something new."""
    unfit = (name, composition.representation) in UNFIT
    new = composition.representation == "direct" or composition.source in ENOUGH_SOURCES
    return new and not unfit and composition.labels in LABELS_OF[name]


OTHERS = [
    pytest.param(name, composition, id=f"{name}-{composition}")
    for name in LABELS_OF
    for composition in POSSIBLE
    if fits(name, composition)
]


@pytest.fixture(scope="module")
def experts_of(tmp_path_factory) -> Callable[[str], Experts]:
    @functools.cache
    def recorded(name: str) -> Experts:
        return CASES[name]().record(tmp_path_factory.mktemp(name), Recording(**EXPERTS))

    return recorded


def set_of(case: Case, recipe: Recipe, teacher: Teacher) -> SyntheticSet:
    """The start of the case with another representation and other labels."""
    start = case.begin(recipe.synthetic.step_size)
    options = recipe.synthetic.representation.model_dump()
    kind = catalog.load("representation", options.pop("kind"), catalog.REPRESENTATIONS)
    with torch.no_grad():
        values = tree_map(torch.Tensor.detach, start.representation.decode(None))
    made = SyntheticSet(
        kind.of_items(values, **options),
        start.labels,
        start.groups,
        start.num_groups,
        joint=start.joint,
        step_size=start.step_size,
    )
    made.labels = labels_of(made, recipe.synthetic.labels.kind, teacher)
    return made


@torch.no_grad()
def labels_of(made: SyntheticSet, kind: str, teacher: Teacher) -> Labels:
    if kind == "hard":
        return made.labels
    batch = made.batch()
    if kind == "soft":
        return SoftLabels(teacher.start(batch, margin=4.0))
    return SoftLabels(teacher.logits(batch).mean(dim=0), learned=False)


@pytest.mark.parametrize(("name", "composition"), OTHERS)
def test_on_other_data(name, composition, experts_of):
    case, experts = CASES[name](), experts_of(name)
    recipe = validate(composition.values(), str(composition))
    teacher = Teacher(case.learner(), experts, every=1)

    def begin() -> Distiller:
        run = case.distiller(
            build.objective(recipe),
            source=composition.source,
            synthetic=set_of(case, recipe, teacher),
            experts=experts,
            per_group=4,
            **SOURCES[composition.source],
        )
        run.teacher = teacher if composition.labels == "teacher" else None
        return run

    assert_composes(begin, composition)
