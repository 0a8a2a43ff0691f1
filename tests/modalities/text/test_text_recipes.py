"""The shipped recipes of texts, run on a set with the columns that they name."""

import datasets
import pytest
import torch
from text_sets import labels, save_bert, sentences, table

import mmdd
from mmdd import build
from mmdd.compose import compose, recipes

TEXTS = sorted(name for name in recipes() if name.startswith("text/"))
SHORT = {
    "data.validation": 0,
    "synthetic.per_class": 2,
    "experts.count": 1,
    "experts.epoch_steps": 1,
    "optimise.steps": 2,
    "real.per_group": 8,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def source():
    made = {
        split: table(sentences(count, seed=place), labels(count))
        for place, (split, count) in enumerate({"train": 40, "test": 20}.items())
    }
    return datasets.DatasetDict(made)


@pytest.mark.parametrize("name", TEXTS)
def test_shipped_recipes_learn_what_they_say(name, bert, source):
    stated = compose(name)
    options = {**SHORT, **({"data.model": bert} if stated.data.model else {})}
    if stated.data.model is None:
        options["data.hidden"] = 8
    recipe = compose(name, options=options)
    splits = build.open_data(recipe, source, torch.device("cpu"))
    assert (len(splits.info.shape) == 1) == (stated.data.model is not None)
    parts = build.parts(recipe, splits.info, torch.device("cpu"))
    distiller = build.distiller(parts, splits, build.experts(parts, splits))
    before = {key: leaf.detach().clone() for key, leaf in distiller.synthetic.leaves().items()}
    distiller.step()
    after = distiller.synthetic.leaves()
    assert all(not torch.equal(before[key], leaf) for key, leaf in after.items())
    learned = {key.partition(".")[0] for key in after}
    assert ("labels" in learned) == (stated.synthetic.labels.kind == "soft")
    assert ("step_size" in learned) == (stated.source.kind == "experts")


@pytest.mark.parametrize(("space", "name"), [("tokens", "textcnn"), ("sentence", "mlp")])
def test_the_usual_encoder_is_named_as_what_it_is(space, name, bert, source):
    told = {"evaluate.epochs": 2, "evaluate.learners": 2, "evaluate.full": False}
    options = {**SHORT, **told, "data.space": space, "data.model": bert}
    done = mmdd.distill(source, method="dm", options={"modality": "text", **options})
    assert done.recipe.learner.encoder == name
    report = done.evaluate(baselines=False)
    assert list(report["results"]) == [name]
