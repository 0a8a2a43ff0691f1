"""Methods on pairs from beginning to end: steps, scores, baselines, saving, pictures."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import mmdd
from mmdd import build
from mmdd.artifact import export
from mmdd.compose import compose
from mmdd.errors import UserError
from mmdd.modalities.pairs.data import open_pairs
from mmdd.modalities.pairs.encoders import build as build_encoder
from mmdd.modalities.pairs.modality import PAIRS
from mmdd.modalities.pairs.options import ENCODERS, PairAugment, PairData
from mmdd.modalities.text.augment import TextAugment

from .conftest import pictures, vectors

METHODS = ["dm-vl", "mtt-vl", "lors"]
SMALL = {
    "synthetic.items": 8,
    "learner.width": 8,
    "optimise.steps": 2,
    "real.per_group": 16,
    "run.device": "cpu",
    "run.precision": "float32",
    "evaluate.epochs": 4,
    "evaluate.learners": 2,
    "evaluate.full": False,
    "evaluate.baselines": ["random", "herding", "k-center"],
}
FOLLOWING = {
    "experts.count": 2,
    "experts.epochs": 3,
    "source.max_start": 2,
    "objective.steps": 3,
    "objective.batch_size": 5,
}
RAW = {
    "data.image_space": "pixels",
    "data.text_space": "tokens",
    "data.size": 16,
    "data.vocabulary": 300,
    "data.hidden": 8,
    "learner.encoder": "auto",
    "learner.filters": 6,
    "learner.depth": 2,
}


def options_of(method, **more):
    options = {**SMALL, **({} if method == "dm-vl" else FOLLOWING)}
    if method == "lors":
        options |= {"synthetic.labels.rank": 2}
    return {"modality": "pairs", **options, **more}


def source_of(kind, count=60):
    if kind == "vectors":
        return {"train": vectors(count, 0, several=2), "test": vectors(30, 1, several=2)}
    return {"train": pictures(count), "test": pictures(20, 1)}


def distilled(method, kind="vectors", **more):
    return mmdd.distill(source_of(kind), method=method, options=options_of(method, **more))


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["vectors", "raw"])
def test_a_method_takes_two_steps(method, kind):
    raw = RAW if kind == "raw" else {}
    recipe = compose(method=method, options=options_of(method, **raw))
    device = torch.device("cpu")
    splits = build.open_data(recipe, source_of(kind), device)
    parts = build.parts(recipe, splits.info, device)
    run = build.distiller(parts, splits, build.experts(parts, splits))
    leaves = run.synthetic.leaves()
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    names = {"inputs.image", "inputs.text" if kind == "vectors" else "inputs.text.values"}
    if method == "lors":
        names |= {"labels.diagonal", "labels.left", "labels.right"}
    if method != "dm-vl":
        names.add("step_size")
        assert leaves["step_size"].shape == (2,)
    assert set(leaves) == names
    assert all(np.isfinite([run.step(), run.step()]))
    for name, leaf in leaves.items():
        assert not torch.equal(leaf, before[name]), name
    if kind == "raw":
        mask = run.synthetic.batch().inputs["text"]["mask"]
        values = leaves["inputs.text.values"]
        assert (~mask).any(), "some texts are shorter than the longest"
        assert (values.grad[~mask] == 0).all()
        assert values.grad[mask].abs().sum() > 0


@pytest.mark.parametrize("relation", ["identity", "low-rank"])
def test_gradient_matching_of_pixels_and_tokens(relation):
    options = options_of("dm-vl", **RAW) | {
        "objective": {"kind": "gradient", "distance": "layerwise-cosine"},
        "synthetic.labels": "hard" if relation == "identity" else {"kind": "relation", "rank": 3},
    }
    made = mmdd.distill(source_of("raw"), method="dm-vl", options=options)
    leaves = made.synthetic.leaves()
    assert all(torch.isfinite(leaf).all() for leaf in leaves.values())
    mask = made.synthetic.batch().inputs["text"]["mask"]
    assert (leaves["inputs.text.values"].grad[~mask] == 0).all()


def test_experts_and_nets_in_training_see_every_caption(monkeypatch, tmp_path):
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path))
    for method, more in (
        ("mtt-vl", {"experts.epochs": 12}),
        ("dm-vl", {"source": {"kind": "real-trained", "batch_size": 20}, "optimise.steps": 8}),
    ):
        recipe = compose(method=method, options=options_of(method, **more))
        splits = build.open_data(recipe, source_of("vectors"), torch.device("cpu"))
        parts = build.parts(recipe, splits.info, torch.device("cpu"))
        train, seen, select = splits.train, set(), splits.train.select
        monkeypatch.setattr(
            train, "select", lambda i, s=select, n=seen: n.update(i.tolist()) or s(i)
        )
        experts = build.experts(parts, splits)
        run = build.distiller(parts, splits, experts)
        for _ in range(recipe.optimise.steps if experts is None else 0):
            run.step()
        assert len([pair for pair in seen if pair >= len(train)]) > 0.9 * (train.pairs - len(train))


@pytest.mark.parametrize("relation", ["identity", "full", "low-rank"])
def test_gradient_matching_of_pairs(relation):
    labels = {"identity": "hard", "full": {"kind": "relation", "rank": None}}
    options = options_of("dm-vl") | {
        "objective": {"kind": "gradient", "distance": "cosine"},
        "synthetic.labels": labels.get(relation, {"kind": "relation", "rank": 3}),
        "task": "retrieval-wbce",
        "optimise.labels.lr": 0.1,
    }
    made = mmdd.distill(source_of("vectors"), method="dm-vl", options=options)
    targets = made.synthetic.batch().targets
    assert (targets is None) == (relation == "identity")
    if targets is not None:
        assert not torch.equal(targets["similarity"], torch.eye(8))


def test_the_similarities_of_a_cluster_are_its_own():
    options = options_of("dm-vl") | {
        "objective": {"kind": "gradient", "distance": "cosine"},
        "synthetic.labels": {"kind": "relation", "rank": None},
        "data.clusters": 3,
        "optimise.labels.lr": 0.1,
    }
    made = mmdd.distill(source_of("vectors"), method="dm-vl", options=options).synthetic
    moved = made.labels.similarity() != torch.eye(8)
    same = made.groups[:, None] == made.groups[None, :]
    assert moved[same].any()
    # items of two clusters never met in a loss
    assert not moved[~same].any()


# -- scores ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lors(tmp_path_factory):
    made = distilled("lors", **{"optimise.steps": 3})
    made.evaluate()
    folder = tmp_path_factory.mktemp("lors") / "set"
    made.save(folder)
    return made, folder


def test_scores_name_the_gallery(lors):
    rows = lors[0].results["results"]["linear"]
    assert set(rows) == {"synthetic", "random", "herding", "k-center"}
    for row in rows.values():
        assert 0 <= row["mean"] <= 1
        extras = row["extras"]
        assert extras["gallery_images"]["mean"] == 30
        assert extras["gallery_texts"]["mean"] == 60
        assert {f"{way}@{k}" for way in ("TR", "IR") for k in (1, 5, 10)} <= set(extras)
        assert len(row["lr"]) == 2


def test_training_on_real_pairs_finds_them_again():
    made = mmdd.distill(
        source_of("vectors"),
        method="dm-vl",
        options=options_of(
            "dm-vl",
            **{"evaluate.full": True, "evaluate.full_epochs": 200, "evaluate.baselines": []},
        ),
    )
    rows = made.evaluate()["results"]["linear"]
    assert rows["full"]["mean"] > 0.6 > rows["synthetic"]["mean"]


def test_distilled_pairs_beat_random_ones():
    made = mmdd.distill(
        source_of("vectors", 200),
        method="dm-vl",
        options=options_of("dm-vl")
        | {"optimise.steps": 80, "real.per_group": 128, "evaluate.epochs": 40},
    )
    rows = made.evaluate()["results"]["linear"]
    assert rows["synthetic"]["mean"] > rows["random"]["mean"] + 0.02


# -- what is handed back ---------------------------------------------------------------------------


def test_a_saved_set_comes_back(lors, tmp_path):
    made, folder = lors
    again = mmdd.load(folder)
    one, other = made.synthetic.batch(), again.synthetic.batch()
    for name in ("image", "text"):
        assert torch.equal(one.inputs[name], other.inputs[name])
    assert torch.equal(one.targets["similarity"], other.targets["similarity"])
    assert again.budget == made.budget
    items = 8 * (12 + 10) * 4 + 8 * 8 + 2 * 4
    assert made.budget["bytes"] == items + 4 * (8 + 2 * 8 * 2)
    assert again.evaluate(data=source_of("vectors"), baselines=False)["results"]["linear"][
        "synthetic"
    ]["values"] == pytest.approx(made.results["results"]["linear"]["synthetic"]["values"])
    assert export(folder, "safetensors", tmp_path / "set.safetensors")
    assert export(folder, "parquet", tmp_path / "plain")
    found = datasets.load_dataset(str(tmp_path / "plain"), cache_dir=str(tmp_path / "c"))["train"]
    stored = np.array(found["image_embedding"][:])
    mean = made.info.tensors["image.mean"].numpy()
    unit = (stored - mean) / made.info.normalisation["fields"]["image"]["std"]
    assert np.allclose(unit, one.inputs["image"].detach().numpy(), atol=1e-5)
    assert np.allclose(found["similarity"][:], one.targets["similarity"].detach().numpy())
    assert (folder / "picture.png").stat().st_size > 1000


def test_columns_and_picture_of_images_and_tokens(tmp_path):
    made = distilled("dm-vl", "raw", **RAW, **{"optimise.inputs.lr": 1e-6})
    columns, features = PAIRS.to_columns(*_batch(made), made.info)
    assert {type(feature).__name__ for feature in features.values()} >= {"Image", "List"}
    train = made._splits.train
    for pair in range(8):
        # hardly moved: each image is still nearest to the one that it started from
        start = train.first.read(torch.tensor([columns["nearest_image_row"][pair]]))
        assert torch.allclose(made.synthetic.batch().inputs["image"][pair], start[0], atol=1e-3)
    assert columns["text_tokens"][0]
    shown = np.asarray(columns["image"][0])
    assert shown.shape == (16, 16, 3)
    PAIRS.picture(*_batch(made), made.info, tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size[0] > 400
    back = made.to_dataset()["train"]
    assert len(back) == 8


def test_a_pair_that_hardly_moved_is_told_by_its_own_caption():
    options = {"data.size": 16, "data.filters": 8, "optimise.inputs.lr": 1e-6}
    made = distilled("dm-vl", "raw", **options)
    columns, _ = PAIRS.to_columns(*_batch(made), made.info)
    train = made._splits.train
    assert len(set(columns["nearest_text"])) > 4
    for row, text in zip(columns["nearest_image_row"], columns["nearest_text"], strict=True):
        own = torch.nonzero(train.owner == row).flatten().tolist()
        assert text in [train.words[place] for place in own]
    assert max(columns["nearest_text_distance"]) < 1e-2


def test_a_set_without_its_data_is_shown_without_neighbours(tmp_path):
    made = distilled("dm-vl")
    inputs, targets = _batch(made)
    info = made.info
    del made
    columns, _ = PAIRS.to_columns(inputs, targets, info)
    assert set(columns) == {"pair", "image_embedding", "text_embedding"}
    PAIRS.picture(inputs, targets, info, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def _batch(made):
    batch = made.synthetic.batch()
    return batch.inputs, batch.targets


# -- nets and augmentation -------------------------------------------------------------------------


def info_of(kind="vectors", **options):
    return open_pairs(source_of(kind), PairData(validation=0, **options)).info


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("learn", [False, True])
def test_every_parameter_is_in_one_group(encoder, learn):
    info = info_of()
    net = build_encoder(ENCODERS[encoder](learn_temperature=learn, width=6), info)
    groups = net.parameter_groups
    assert list(groups) == ["image", "text"]
    named = [name for names in groups.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in net.named_parameters())
    assert ("scale.log" in groups["text"]) == learn
    inputs = PAIRS.noise(5, info, torch.Generator().manual_seed(0))
    outputs = net(inputs)
    lengths = torch.cat([side.norm(dim=1) for side in outputs.values()])
    # dot products are cosines over the temperature
    assert torch.allclose(lengths, torch.full((10,), 0.07**-0.5))
    assert torch.equal(net.layers(inputs)[-1], net.features(inputs))
    assert net.features(inputs).shape == (5, 12)


def test_a_learned_temperature_stays_above_a_hundredth():
    net = build_encoder(ENCODERS["linear"](learn_temperature=True), info_of())
    with torch.no_grad():
        net.scale.log.fill_(50.0)
        assert float(net.scale()) == pytest.approx(100.0)
        net.scale.reset_parameters()
        assert float(net.scale()) == pytest.approx(1 / 0.07)


def test_pixels_have_no_linear_projection():
    info = info_of("raw", image_space="pixels", size=16)
    with pytest.raises(UserError, match="'image' holds pixels, of which no linear projection"):
        build_encoder(ENCODERS["linear"](), info)
    net = build_encoder(ENCODERS["mlp"](width=4), info)
    assert net.features(PAIRS.example(info)).shape == (1, 8)


def test_one_draw_augments_both_fields():
    info = info_of()
    augment = PAIRS.augmentation(PairAugment(dropout=0.5), info)
    draw = augment.draw(2, torch.Generator().manual_seed(0))
    inputs = PAIRS.noise(4, info, torch.Generator().manual_seed(1))
    found = augment(inputs, draw, torch.tensor([0, 1, 0, 1]))
    for name, size in (("image", 12), ("text", 10)):
        alone = TextAugment((size,), dropout=0.5)
        expected = alone(inputs[name], draw[name], torch.tensor([0, 1, 0, 1]))
        assert torch.equal(found[name], expected)
        assert 0 < int((found[name] == 0).sum()) < found[name].numel()
    raw = info_of("raw", image_space="pixels", text_space="tokens", size=16, vocabulary=300)
    augment = PAIRS.augmentation(PairAugment(), raw)
    inputs = PAIRS.noise(4, raw, torch.Generator().manual_seed(1))
    found = augment(inputs, augment.draw(4, torch.Generator().manual_seed(0)))
    assert found["image"].shape == inputs["image"].shape
    assert torch.equal(found["text"]["mask"], inputs["text"]["mask"])
    run = distilled("mtt-vl", **{"augment": "pairs"})
    assert run.run["steps"] == 2


def test_pairs_of_a_cheap_method_are_the_start_of_a_dear_one(tmp_path):
    before = mmdd.distill(
        source_of("vectors"), method="dm-vl", options=options_of("dm-vl"), out=tmp_path / "cheap"
    )
    begun = {"synthetic.initialise": str(tmp_path / "cheap"), "optimise.inputs.lr": 1e-12}
    after = mmdd.distill(source_of("vectors"), method="lors", options=options_of("lors", **begun))
    ours, theirs = before.synthetic.batch().inputs, after.synthetic.batch().inputs
    for side, value in ours.items():
        torch.testing.assert_close(theirs[side], value, rtol=0, atol=1e-6)
    assert after.run["begun_with"]["method"] == "dm-vl"
