"""Methods: what each is made of, that it comes back from a file, and that it runs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import get_args

import pytest
import torch
import yaml

from mmdd import build, catalog, method_sections, sections
from mmdd.compose import compose, methods, read_yaml
from mmdd.errors import NonFiniteError
from mmdd.expert_options import Recording
from mmdd.recipe import validate
from mmdd.selection import RealSelector
from mmdd.teacher import Teacher

COMPOSITIONS = {
    # objectives, source, representation, labels, augmentation
    "dm": (["distribution"], "fresh", "direct", "hard", "dsa"),
    "dc": (["gradient"], "synthetic-trained", "direct", "hard", "none"),
    "dsa": (["gradient"], "synthetic-trained", "direct", "hard", "dsa"),
    "idc": (["gradient"], "real-trained", "packed", "hard", "dsa"),
    "dream": (["gradient"], "real-trained", "packed", "hard", "dsa"),
    "idm": (["distribution", "cross-entropy"], "pool", "packed", "hard", "dsa"),
    "dance": (["distribution", "cross-entropy"], "interpolated", "packed", "hard", "dsa"),
    "mtt": (["trajectory"], "experts", "direct", "hard", "dsa"),
    "tesla": (["trajectory"], "experts", "direct", "teacher", "dsa"),
    "datm": (["trajectory"], "experts", "direct", "soft", "dsa"),
}
DIGITS = {
    "data.source": "digits",
    "synthetic.per_class": 1,
    "learner.width": 8,
    "real.per_group": 8,
    "optimise.steps": 2,
    "run.device": "cpu",
    "run.precision": "float32",
}
FOLLOWING = {
    "experts.count": 2,
    "experts.epochs": 3,
    "experts.epoch_steps": 2,
    "experts.batch_size": 32,
    "source.max_start": 2,
    "objective.steps": 3,
}
# smaller than published where a run would take long
SMALL = {
    "dc": {"source.outer": 2, "source.inner": 1},
    "dsa": {"source.outer": 2, "source.inner": 1},
    "idm": {"source.start": 1, "source.updates": 1, "source.batch_size": 32},
    "idc": {"source.updates": 1},
    "dream": {"source.updates": 1, "real.selector.pool": 16, "real.per_group": 4},
    "dance": {"experts.count": 1, "experts.epoch_steps": 4},
    "mtt": FOLLOWING,
    "tesla": FOLLOWING,
    "datm": {**FOLLOWING, "source.first_max_start": 1},
}


def kind_of(value):
    return value if isinstance(value, str) else value["kind"]


def kinds_of(value):
    return [kind_of(term) for term in (value if isinstance(value, list) else [value])]


def test_the_command_line_names_every_method_with_its_composition():
    words = [sys.executable, "-m", "mmdd.cli", "list", "methods", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)
    assert set(listed) == set(methods())
    for name, (objectives, source, representation, labels, augment) in COMPOSITIONS.items():
        told = listed[name]
        assert kinds_of(told["objective"]) == objectives
        assert kind_of(told["source"]) == source
        assert kind_of(told["representation"]) == representation
        assert kind_of(told["labels"]) == labels
        assert kind_of(told["augment"]) == augment
        assert len(told["about"]) > 20
        assert "\n" not in told["about"]
        assert (told["experts"] is not None) == (source in ("interpolated", "experts"))
        assert (told["step_size"] is not None) == (objectives == ["trajectory"])
    assert kind_of(listed["dream"]["selector"]) == "k-means"


@pytest.mark.parametrize("name", methods())
def test_a_method_comes_back_equal_from_a_file(name, tmp_path):
    made = compose(method=name)
    stored = made.model_dump(mode="json")
    assert validate(stored, "stored") == made
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(stored))
    assert compose(path) == made
    # another method's defaults never shine through what a stored recipe says
    assert compose(path, method="idm").model_copy(update={"method": name}) == made


@pytest.mark.parametrize("name", methods())
def test_a_methods_parts_are_made_of_its_options(name):
    made = compose(method=name)
    terms = build.objective(made).terms
    assert [weight for weight, _ in terms] == [section.weight for section in made.terms]
    for section, (_, objective) in zip(made.terms, terms, strict=True):
        assert type(objective) is catalog.OBJECTIVES[section.kind].load()
    selector = build.selector(made)
    assert (selector is None) == (made.real.selector.kind == "random")
    if selector is not None:
        assert selector.every == made.real.selector.every


def test_rates_follow_the_items_per_class_where_asked():
    options = {"optimise.inputs.lr": 0.2, "optimise.labels.lr": 3.0}
    counts = torch.tensor([4, 0, 4, 4])  # a class without items has no say
    for asked, rate in ((True, 0.8), (False, 0.2)):
        made = compose(method="dm", options={**options, "optimise.inputs.by_items": asked})
        found = build.rates(made, counts)
        assert found["inputs"].lr == pytest.approx(rate)
        assert found["labels"].lr == 3.0
        assert found["inputs"].momentum == made.optimise.inputs.momentum


def test_published_settings():
    dc, idc, idm, mtt = (compose(method=name) for name in ("dc", "idc", "idm", "mtt"))
    assert dc.objective.distance == "layerwise-cosine"
    assert dc.source.outer is dc.source.inner is None
    assert (dc.source.lr, dc.source.momentum, dc.source.batch_size) == (0.01, 0.0, 256)
    assert (idc.source.life, idc.source.momentum, idc.source.weight_decay) == (100, 0.9, 5e-4)
    assert idc.synthetic.representation.factor == 2
    assert (idm.source.nets, idm.source.start, idm.source.push_every) == (100, 3, 30)
    assert (idm.source.students, idm.source.updates) == (2, 10)
    assert idm.terms[1].by_accuracy
    assert (mtt.experts.momentum, mtt.experts.weight_decay) == (0.0, 0.0)
    assert compose(method="tesla").objective.memory == "tesla"
    datm = compose(method="datm")
    assert (datm.experts.sharpness, datm.experts.rho, datm.experts.alpha) == (True, 0.01, 0.3)


# -- sections and what they name -------------------------------------------------------------------


def defaults_of(callable_, *, without=()):
    parameters = inspect.signature(callable_).parameters
    return {n: p.default for n, p in parameters.items() if n not in without}


def sections_of(annotation):
    found = []
    for part in get_args(annotation):
        if inspect.isclass(part) and "kind" in getattr(part, "model_fields", {}):
            found.append(part)
        else:
            found += sections_of(part)
    return found


def fields_of(model, *, without=("kind",)):
    made = model()
    return {n: getattr(made, n) for n in model.model_fields if n not in without}


def models(annotation, family):
    found = [model for model in sections_of(annotation) if model().kind in family]
    assert {model().kind for model in found} == set(family)
    return [pytest.param(model, id=model().kind) for model in found]


@pytest.mark.parametrize("model", models(method_sections.Source, catalog.SOURCES))
def test_sources_have_the_options_and_defaults_of_their_sections(model):
    part = catalog.SOURCES[model().kind].load()
    assert defaults_of(part, without=("around",)) == fields_of(model)


@pytest.mark.parametrize("model", models(method_sections.Term, catalog.OBJECTIVES))
def test_objectives_have_the_options_and_defaults_of_their_sections(model):
    ours = defaults_of(catalog.OBJECTIVES[model().kind].load())
    theirs = fields_of(model, without=("kind", "weight"))
    assert {n: list(v) if isinstance(v, tuple) else v for n, v in ours.items()} == theirs


@pytest.mark.parametrize("model", models(sections.Representation, catalog.REPRESENTATIONS))
def test_representations_have_the_options_and_defaults_of_their_sections(model):
    ours = defaults_of(catalog.REPRESENTATIONS[model().kind].load())
    for name, value in fields_of(model).items():
        assert ours[name] == value, name


def test_other_parts_have_the_options_and_defaults_of_their_sections():
    ours = fields_of(method_sections.Experts, without=("folder", "seed"))
    assert defaults_of(Recording) == ours
    assert defaults_of(Teacher)["every"] == sections.Teacher().every
    chosen = fields_of(sections.Selector)
    assert defaults_of(RealSelector, without=("choose",)) == chosen


# -- running ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# those of another modality run in the tests of theirs
ANY_MODALITY = [name for name, path in methods().items() if "modality" not in read_yaml(path)]


@pytest.mark.parametrize("name", ANY_MODALITY)
def test_a_method_takes_two_steps(name, cache):
    recipe = compose(method=name, options={**DIGITS, **SMALL.get(name, {})})
    device = torch.device("cpu")
    splits = build.open_data(recipe, None, device)
    parts = build.parts(recipe, splits.info, device)
    experts = build.experts(parts, splits)
    assert (experts is not None) == build.needs_experts(recipe)
    run = build.distiller(parts, splits, experts)
    before = {leaf: value.detach().clone() for leaf, value in run.synthetic.leaves().items()}
    try:
        losses = [run.step(), run.step()]
    except NonFiniteError as error:
        pytest.fail(f"{name}: {error}")
    assert all(loss == loss and abs(loss) != float("inf") for loss in losses)
    for leaf, value in run.synthetic.leaves().items():
        assert not torch.equal(value, before[leaf]), leaf
    assert len(run.synthetic) == 10
