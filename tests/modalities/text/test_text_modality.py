"""Text through the whole: three spaces by three objectives, augmentation, and back to words."""

import gc

import datasets
import numpy as np
import pytest
import torch
from text_sets import KEEP_ALL, labels, opened, save_bert, sentences

import mmdd
from mmdd.modalities.text.augment import TextAugment, partners
from mmdd.modalities.text.modality import TEXT
from mmdd.modalities.text.neighbours import nearest_items, nearest_tokens, recall
from mmdd.modalities.text.options import AUGMENTATIONS
from mmdd.modalities.text.show import in_units, in_words

TEXTS = sentences(80)
SOURCE = {"train": (TEXTS, labels(80)), "test": (sentences(40, seed=1), labels(40))}
VECTORS = {
    split: (np.random.default_rng(place).normal(size=(len(t), 6)) + 2 * np.array(c)[:, None], c)
    for place, (split, (t, c)) in enumerate(SOURCE.items())
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


SPACES = {
    "tokens": {"data.hidden": 8, "learner.encoder": "textcnn", "learner.width": 8},
    "gru": {"data.hidden": 8, "learner.encoder": "gru", "learner.width": 4},
    "attention": {"data.hidden": 8, "learner.encoder": "transformer", "learner.width": 8},
    "transformers": {
        "data.space": "tokens", "learner.encoder": "transformers", "learner.tuning": "last",
        "learner.layers": 1,
    },
    "sentence": {"learner.encoder": "mlp", "learner.width": 8},
    "column": {"learner.encoder": "linear"},
}  # fmt: skip
METHODS = {
    "dm": {},
    "dc": {"source.outer": 2, "source.inner": 1} ,
    "mtt": {
        "experts.count": 1, "experts.epochs": 2, "experts.lr": 0.05, "objective.steps": 2,
        "source.max_start": 1, "source.length": 1,
    },
}  # fmt: skip


def options_of(space, bert):
    options = {"modality": "text", "data.validation": 0, **SPACES[space]}
    if space in ("transformers", "sentence"):
        options["data.model"] = bert
    return options


def distilled(space, method, bert, out=None, **more):
    options = {**options_of(space, bert), **METHODS[method], "augment": "text", **more}
    source = VECTORS if space == "column" else SOURCE
    return mmdd.distill(
        source, method=method, per_class=2, steps=3, options=options, device="cpu", out=out
    )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", METHODS)
def test_every_objective_learns_in_every_space(space, method, bert):
    made = distilled(space, method, bert)
    start = distilled(space, method, bert, **{"optimise.inputs.lr": 1e-12})
    leaves, before = made.synthetic.leaves(), start.synthetic.leaves()
    name = "inputs" if space in ("sentence", "column") else "inputs.values"
    moved = leaves[name].detach() - before[name].detach()
    assert torch.isfinite(moved).all()
    assert moved.abs().max() > 0
    if name == "inputs":
        return
    mask = made.synthetic.batch().inputs["mask"]
    assert not mask.all()
    # masked positions get exactly no gradient: momentum and Adam leave them where they were
    assert torch.equal(leaves[name].detach()[~mask], torch.zeros_like(moved[~mask]))
    assert (moved[mask].abs().sum(dim=1) > 0).any()


def test_the_same_seed_gives_the_same_bits(bert):
    first, again = (distilled("tokens", "dc", bert).synthetic.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_set_is_saved_loaded_and_scored(bert, tmp_path):
    for space in ("tokens", "transformers", "sentence"):
        more = {"evaluate.protocol": "quick", "evaluate.epochs": 2, "run.threads": 1}
        made = distilled(space, "dm", bert, out=tmp_path / space, **more)
        found = mmdd.load(tmp_path / space)
        assert found.info == made.info
        ours, theirs = made.synthetic.state_dict(), found.synthetic.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        table = datasets.load_dataset(str(tmp_path / space), split="train")
        assert len(table) == 4
        assert set(table["nearest_text"]) <= set(TEXTS)
        scores = found.evaluate(data=SOURCE, learners=2, baselines=False)["results"]
        row = next(iter(scores.values()))["synthetic"]
        assert row["n"] == 2
        assert 0 <= row["mean"] <= 1
        assert (tmp_path / space / "picture.png").stat().st_size > 10_000


# Doors -----------------------------------------------------------------------------------------


def test_examples_noise_and_bounds():
    info = opened((TEXTS, labels(80)), hidden=8, **KEEP_ALL).info
    length = info.shape[0]
    assert TEXT.example(info)["values"].shape == (1, length, 8)
    assert TEXT.example(info)["mask"].all()
    noise = TEXT.noise(50, info, torch.Generator().manual_seed(0))
    shown = noise["mask"]
    assert shown.sum(dim=1).tolist() == [info.normalisation["typical_length"]] * 50
    assert noise["values"][~shown].abs().max() == 0
    assert abs(noise["values"][shown].std() - 1) < 0.05
    assert TEXT.bounds(info) is None
    vectors = opened(VECTORS["train"], **KEEP_ALL).info
    assert TEXT.noise(3, vectors, torch.Generator()).shape == (3, 6)
    assert TEXT.example(vectors).shape == (1, 6)


def test_augmentations_by_name():
    info = opened(VECTORS["train"], **KEEP_ALL).info
    assert TEXT.augmentation(AUGMENTATIONS["none"](), info) is None
    made = TEXT.augmentation(AUGMENTATIONS["text"](dropout=0.5), info)
    assert isinstance(made, TextAugment)
    assert made.dropout == 0.5


def tokens(count=6, seed=0):
    values = torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(5) < torch.tensor([5, 3, 2, 4, 1, 5])[:count, None]
    return {"values": values * mask.unsqueeze(-1), "mask": mask}


def test_one_draw_is_one_transform_of_a_class():
    augment = TextAugment((5, 4), dropout=0.4, mask=0.3)
    draw = augment.draw(3, torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    ones = {"values": torch.ones(6, 5, 4), "mask": torch.ones(6, 5, dtype=torch.bool)}
    values = augment(ones, draw, rows)["values"]
    for row in (0, 2, 4):
        assert torch.equal(values[row], values[row + 1])
        group = int(rows[row])
        expected = draw["show"][group][:, None] * draw["keep"][group][None] / 0.6
        torch.testing.assert_close(values[row], expected)
    assert not torch.equal(values[0], values[2])
    # another batch of the same classes is transformed alike, item by item or without rows
    again = augment({k: v[::2] for k, v in ones.items()}, draw)
    assert torch.equal(again["values"], values[::2])
    vectors = TextAugment((4,), dropout=0.4)
    torch.testing.assert_close(
        vectors(torch.ones(3, 4), vectors.draw(3, torch.Generator().manual_seed(1))),
        vectors.draw(3, torch.Generator().manual_seed(1))["keep"] / 0.6,
    )


def test_augmentation_keeps_the_mean_and_the_mask():
    augment = TextAugment((5, 4), dropout=0.3, mask=0.0)
    inputs = tokens()
    draws = augment.draw(6 * 3000, torch.Generator().manual_seed(0))
    many = {k: v.repeat_interleave(3000, dim=0) for k, v in inputs.items()}
    mean = augment(many, draws)["values"].unflatten(0, (6, 3000)).mean(dim=1)
    torch.testing.assert_close(mean, inputs["values"], atol=0.1, rtol=0)
    found = augment(inputs, augment.draw(6, torch.Generator()))
    assert torch.equal(found["mask"], inputs["mask"])
    assert found["values"][~inputs["mask"]].abs().max() == 0


def test_mixing_stays_in_its_class():
    rows = torch.tensor([1, 0, 1, 2, 1, 0])
    assert partners(rows).tolist() == [2, 5, 4, 3, 0, 1]
    augment = TextAugment((5, 4), dropout=0.0, mask=0.0, mix=0.5)
    draw = augment.draw(3, torch.Generator().manual_seed(0))
    inputs = tokens()
    found = augment(inputs, draw, rows)
    share = draw["share"]
    assert (share > 0).all()
    assert (share < 0.5).all()
    values = inputs["values"]
    expected = (1 - share[1]) * values[0] + share[1] * values[2]
    torch.testing.assert_close(found["values"][0], expected)
    assert torch.equal(found["values"][3], values[3])
    assert torch.equal(found["mask"][4], inputs["mask"][4] | inputs["mask"][0])
    assert found["values"][~found["mask"]].abs().max() == 0
    alone = augment(inputs, augment.draw(6, torch.Generator()))
    assert torch.equal(alone["values"], values)


def test_augmentation_is_differentiable():
    augment = TextAugment((5, 4), dropout=0.3, mask=0.2, mix=0.4)
    draw, rows = augment.draw(2, torch.Generator().manual_seed(2)), torch.tensor([0, 1, 0, 1, 0, 1])
    inputs = tokens()
    mask = inputs["mask"]

    def run(values):
        return augment({"values": values, "mask": mask}, draw, rows)["values"]

    values = inputs["values"].double().requires_grad_()
    assert torch.autograd.gradcheck(run, values)
    run(values).sum().backward()
    assert values.grad[~mask].abs().max() == 0


# Back to words ---------------------------------------------------------------------------------


def test_real_items_are_their_own_nearest():
    for source in ((TEXTS, labels(80)), VECTORS["train"]):
        train = opened(source, **KEEP_ALL).train
        chosen = torch.tensor([5, 40, 79])
        found = nearest_items(train.read(chosen), train)
        assert found.distances.abs().max() < 1e-2
        if isinstance(source[0], list):  # sentences of the same words have one mean
            words = [sorted(train.words[place].split()) for place in found.index.tolist()]
            assert words == [sorted(TEXTS[place].split()) for place in chosen.tolist()]
        else:
            assert torch.equal(found.index, chosen)
    table = torch.randn(9, 3)
    ids, distances = nearest_tokens(table[torch.tensor([[4, 2], [8, 0]])] + 1e-3, table)
    assert ids.tolist() == [[4, 2], [8, 0]]
    torch.testing.assert_close(distances, torch.full((2, 2), 1e-3 * 3**0.5), rtol=1e-2, atol=1e-4)


def test_columns_of_tokens_and_vectors(bert):
    splits = opened((TEXTS, labels(80)), **KEEP_ALL)
    rows = torch.tensor([3, 8])
    columns, features = TEXT.to_columns(
        splits.train.read(rows), torch.tensor([[0.2, 0.8], [0.9, 0.1]]), splits.info
    )
    assert "".join(columns["tokens"][0]).replace("▁", " ").strip() == TEXTS[3]
    assert max(columns["token_distances"][0]) < 1e-2
    assert sorted(columns["nearest_text"][0].split()) == sorted(TEXTS[3].split())
    assert columns["label"] == [1, 0]
    assert columns["soft_label"][0] == pytest.approx([0.2, 0.8])
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    assert made.features["label"].names == ["0", "1"]
    own = opened((TEXTS, labels(80)), space="tokens", model=bert, **KEEP_ALL)
    found, _ = TEXT.to_columns(own.train.read(rows), torch.tensor([1, 0]), own.info)
    assert found["tokens"][0] == ["[CLS]", *TEXTS[3].split(), "[SEP]"]
    vectors, codes = VECTORS["train"]
    plain = opened((vectors, codes), **KEEP_ALL)
    found, features = TEXT.to_columns(plain.train.read(rows), torch.tensor([1, 0]), plain.info)
    np.testing.assert_allclose(np.array(found["embedding"]), vectors[[3, 8]], rtol=1e-4, atol=1e-5)
    assert set(found) == {"embedding", "label"}
    units = in_units(plain.train.read(rows), plain.info)
    np.testing.assert_allclose(units, vectors[[3, 8]], rtol=1e-4, atol=1e-5)


def test_words_are_known_while_the_data_is_open():
    splits = opened((TEXTS, labels(80)), seed=3, validation=2, test=0.1)
    info, inputs = splits.info, splits.train.read(torch.tensor([0]))
    assert recall(info.fingerprint) is splits.train
    assert in_words(inputs, info).texts is not None
    del splits
    gc.collect()
    assert recall(info.fingerprint) is None
    found = in_words(inputs, info)
    assert found.texts is None
    assert found.tokens is not None  # the table and the tokenizer are stored with the set


@pytest.mark.parametrize("classes", [2, 30])
def test_pictures(classes, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    codes = np.arange(120) % classes
    splits = opened((rng.normal(size=(120, 5)), codes), **KEEP_ALL)
    inputs, targets = splits.train.read(torch.arange(60)), splits.train.targets[:60]
    TEXT.picture(inputs, targets, splits.info, tmp_path / "a.png")
    TEXT.picture(inputs, targets, splits.info, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").width > 800
    tiny = opened((rng.normal(size=(4, 1)), [0, 1, 0, 1]), **KEEP_ALL)
    TEXT.picture(
        tiny.train.read(torch.arange(4)), tiny.train.targets, tiny.info, tmp_path / "c.png"
    )
