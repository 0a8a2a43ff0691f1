"""Opening pairs: columns, captions, spaces, what is dropped, and what is refused."""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from text_sets import save_bert

from mmdd.errors import UserError
from mmdd.modalities.guess import modality_of
from mmdd.modalities.pairs.data import open_pairs
from mmdd.modalities.pairs.features import (
    Filters,
    Semantic,
    encoder_of,
    learn_semantic,
    unit,
    whitened_components,
)
from mmdd.modalities.pairs.options import PairData

from .conftest import pictures, vectors

SHARED = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
FLICKR = SHARED / "pairs" / "flickr8k_1k"
SMALL = {"size": 16, "filters": 8, "image_width": 6, "text_width": 8}


def opened(source, **options):
    return open_pairs(source, PairData(**{**SMALL, **options}))


def table(count=40, seed=0, **columns):
    images, captions = pictures(count, seed)
    features = datasets.Features(
        {"photo": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    )
    made = datasets.Dataset.from_dict({"photo": images, "captions": captions}, features=features)
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def everything(data):
    return data.select(torch.arange(data.pairs))


# -- sources ---------------------------------------------------------------------------------------


def test_a_table_with_lists_of_captions():
    splits = opened(table(filename=[f"{n}.jpg" for n in range(40)]))
    info = splits.info
    assert dict(info.columns) == {"image": "photo", "text": "captions"}
    assert (len(splits.train), splits.train.pairs) == (28 + 1, 58)
    assert info.sizes["train"] + info.sizes["validation"] + info.sizes["test"] == 40
    assert info.classes == 1
    assert info.task == "retrieval"
    assert f"test gallery: {len(splits.test)} of image, {splits.test.pairs} of text" in info.notes
    assert info.normalisation["gallery"]["test"] == [len(splits.test), splits.test.pairs]
    batch = splits.train.select(torch.tensor([0, 3]))
    assert {name: tuple(v.shape) for name, v in batch.inputs.items()} == {
        "image": (2, 6),
        "text": (2, 8),
    }


def test_the_same_pairs_by_every_way_of_handing_them_over(tmp_path):
    images, captions = pictures(24)
    ways = {
        "tuple": {"train": (images, captions)},
        "dict": {"train": {"image": images, "text": captions}},
        "samples": {"train": list(zip(images, captions, strict=True))},
        "keys": {"train": [{"image": i, "text": c} for i, c in zip(images, captions, strict=True)]},
        "table": datasets.DatasetDict(train=table(24)),
    }
    found = {name: opened(source, test=0.25, validation=0) for name, source in ways.items()}
    first = everything(found["tuple"].train).inputs
    for name, splits in found.items():
        inputs = everything(splits.train).inputs
        assert torch.equal(inputs["image"], first["image"]), name
        assert torch.equal(inputs["text"], first["text"]), name
        assert splits.info.fingerprint == found["tuple"].info.fingerprint, name
    (tmp_path / "set").mkdir()
    table(24).to_parquet(tmp_path / "set" / "train.parquet")
    again = opened(str(tmp_path / "set"), test=0.25, validation=0)
    assert torch.equal(everything(again.train).inputs["text"], first["text"])
    assert again.info.fingerprint == found["tuple"].info.fingerprint
    assert modality_of(str(tmp_path / "set")) == "pairs"


def test_a_folder_of_images_with_captions_beside(tmp_path):
    images, captions = pictures(12)
    rows = ["file_name,text"]
    for number, (image, texts) in enumerate(zip(images, captions, strict=True)):
        image.save(tmp_path / f"{number:02}.png")
        rows.append(f"{number:02}.png,{texts[0]}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    assert modality_of(str(tmp_path)) == "pairs"
    splits = opened(str(tmp_path), test=0.25, validation=0)
    assert dict(splits.info.columns) == {"image": "image", "text": "text"}
    assert len(splits.train) == splits.train.pairs == 9


def test_two_columns_of_vectors():
    first, second = vectors(30)
    made = datasets.Dataset.from_dict(
        {"image_emb": first.tolist(), "caption_emb": second.tolist(), "id": list(range(30))}
    )
    splits = opened(made, validation=0)
    assert dict(splits.info.columns) == {"image": "image_emb", "text": "caption_emb"}
    assert splits.info.shape == (12, 10)
    values = everything(splits.train).inputs
    for half in values.values():
        assert half.mean(dim=0).abs().max() < 1e-5
        assert float(half.square().mean()) == pytest.approx(1, abs=1e-4)
    assert modality_of(made) == "pairs"


def test_any_two_fields_under_their_own_names():
    first, second = vectors(20, several=3)
    source = {"audio": first, "text": second}
    splits = opened(source, names=("audio", "text"), validation=0)
    assert list(everything(splits.train).inputs) == ["audio", "text"]
    assert splits.train.pairs == 3 * len(splits.train)


def test_captions_stay_with_their_images():
    first, second = vectors(20, several=3)
    splits = opened((first, second), validation=0, test=0)
    data = splits.train
    space = data.second.prepare
    for pair in range(data.pairs):
        batch = data.select(torch.tensor([pair]))
        item = int(batch.targets)
        assert torch.allclose(data.first.read(torch.tensor([item])), batch.inputs["image"])
        own = space(second[item])
        assert (own - batch.inputs["text"]).abs().sum(dim=1).min() < 1e-5
    assert torch.equal(data.owner[: len(data)], torch.arange(len(data)))


# -- drawing captions ------------------------------------------------------------------------------


def test_a_draw_holds_an_image_once_with_any_of_its_captions():
    data = opened(vectors(20, several=3), validation=0, test=0).train
    stream, seen = torch.Generator().manual_seed(0), Counter()
    for _ in range(300):
        index = data.draw_index(8, stream)
        assert len(set(data.owner[index].tolist())) == 8
        seen.update(index.tolist())
    assert len(seen) == data.pairs
    # 300 draws of 8 among 60 pairs: 40 of each, with a deviation of about 6
    assert 15 < min(seen.values()) <= max(seen.values()) < 70
    for batches in (data.batches(7, stream), data.batches(7, stream)):
        owners = torch.cat([batch.targets for batch in batches])
        assert sorted(owners.tolist()) == list(range(20))
    passes = [data.permutation(stream) for _ in range(2)]
    assert not torch.equal(*passes)


def test_a_pass_in_order_holds_every_caption():
    data = opened(vectors(10, several=2), validation=0, test=0).train
    targets = torch.cat([batch.targets for batch in data.batches(6)])
    assert Counter(targets.tolist()) == dict.fromkeys(range(10), 2)


def test_a_subset_keeps_its_captions():
    data = opened(vectors(10, several=2), validation=0, test=0).train
    part = data.subset(torch.tensor([7, 2]))
    assert (len(part), part.pairs) == (2, 4)
    for item, whole in enumerate((7, 2)):
        own = data.second.read(torch.nonzero(data.owner == whole).flatten())
        found = part.second.read(torch.nonzero(part.owner == item).flatten())
        assert torch.equal(found, own)
        assert torch.equal(
            part.first.read(torch.tensor([item])), data.first.read(torch.tensor([whole]))
        )


def test_clusters_are_matched_apart():
    splits = opened(vectors(60), clusters=3, validation=0.2)
    assert splits.info.classes == 3
    assert int(splits.train.group_sizes.sum()) == len(splits.train)
    assert (splits.train.group_sizes > 0).all()
    batch = splits.train.select(splits.train.members(1))
    assert set(batch.groups.tolist()) == {1}
    assert splits.info.fingerprint != opened(vectors(60), validation=0.2).info.fingerprint
    with pytest.raises(UserError, match="clusters is above the number of training pairs"):
        opened(vectors(10), clusters=11)


# -- spaces ----------------------------------------------------------------------------------------


def test_pixels_and_tokens():
    splits = opened(table(), image_space="pixels", text_space="tokens", vocabulary=300, hidden=12)
    inputs = splits.train.select(torch.arange(5)).inputs
    assert inputs["image"].shape == (5, 3, 16, 16)
    values, mask = inputs["text"]["values"], inputs["text"]["mask"]
    assert values.shape == (*mask.shape, 12)
    assert (values[~mask] == 0).all()
    everyone = everything(splits.train).inputs["image"]
    assert everyone.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    short = opened(table(), text_space="tokens", vocabulary=300, length=2)
    assert any("texts were cut to 2 tokens" in note for note in short.info.notes)


def test_filters_are_their_formula():
    stream = torch.Generator().manual_seed(1)
    mean, whiten = torch.randn(27 * 4, generator=stream), torch.eye(27 * 4) * 0.5
    centres = torch.randn(3, 27 * 4, generator=stream)
    image = torch.rand(1, 3, 8, 10, generator=stream)
    found = Filters(mean, whiten, centres)(image)
    codes = torch.zeros(3, 2, 3)
    for row in range(2):
        for column in range(3):
            patch = image[0, :, 2 * row : 2 * row + 6, 2 * column : 2 * column + 6].flatten()
            patch = (patch - patch.mean()) / (patch.var() + 10 / 255**2).sqrt()
            far = torch.stack([((patch - mean) @ whiten - c).norm() for c in centres])
            codes[:, row, column] = (far.mean() - far).clamp_min(0)
    expected = torch.stack([codes[:, :, :2].mean(dim=2), codes[:, :, 1:].mean(dim=2)], dim=2)
    assert torch.allclose(found[0].view(3, 2, 2), expected, atol=1e-4)


def test_components_have_variance_one_and_forget_nothing_of_full_rank():
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) @ torch.randn(4, 9)
    mean, axes = whitened_components(values, 20)
    found = (values - mean) @ axes
    assert found.shape == (50, 4)
    assert torch.allclose(found.T @ found / 50, torch.eye(4), atol=1e-3)
    assert torch.allclose(whitened_components(values, 2)[1], axes[:, :2])


def test_semantic_vectors_know_which_texts_are_alike():
    train = ["a red dog runs", "the red dog sleeps", "blue water and boats", "boats on the water"]
    made = learn_semantic(train, 3)
    found = made(train)
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]
    assert (made(["zzz", "red dog"]).abs().amax(dim=1) > 0).tolist() == [False, True]
    # by hand: (1 + log count) x idf of every word, on the axes
    idf = {
        word: math.log(5 / (1 + sum(word in t.split() for t in train))) + 1 for word in made.words
    }
    weights = torch.tensor([(1 + math.log(2)) * idf["the"] if w == "the" else
                            idf["dog"] if w == "dog" else 0.0 for w in made.words])  # fmt: skip
    expected = torch.nn.functional.normalize(weights @ made.axes, dim=0)
    assert torch.allclose(made(["The dog the"])[0], expected, atol=1e-5)
    again = Semantic.of_tensors(made.tensors())
    assert torch.equal(again(train), found)


def test_new_images_and_texts_can_be_brought_into_a_stored_space():
    images, captions = pictures(30)
    splits = opened((images, captions), validation=0, test=0, size=24)
    info, train = splits.info, splits.train
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
    found = encoder_of("image", info)(unit(pixels))
    assert torch.allclose(found, train.first.values, atol=1e-3)
    texts = encoder_of("text", info)([texts[0] for texts in captions])
    assert torch.allclose(texts, train.second.values[:30], atol=1e-5)
    assert encoder_of("image", opened(vectors(10)).info) is None


def test_features_are_computed_once(monkeypatch):
    first = opened(table(), filters=9)
    monkeypatch.setattr("mmdd.modalities.pairs.features.learn_filters", None)
    again = opened(table(), filters=9)
    assert torch.equal(
        everything(first.train).inputs["image"], everything(again.train).inputs["image"]
    )
    with pytest.raises(TypeError):
        opened(table(seed=1), filters=9)


def test_models_of_images_and_texts(tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path / "vit")
    splits = opened(table(), image_model=str(tmp_path / "vit"), validation=0)
    assert splits.info.shape[0] == 16
    image = np.asarray(pictures(1)[0][0].resize((16, 16), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output[0]
    stored = torch.as_tensor(splits.train.first.values)
    near = (stored - expected).abs().amax(dim=1).min()
    held = torch.as_tensor(splits.test.first.values)
    assert min(near, (held - expected).abs().amax(dim=1).min()) < 0.05
    with pytest.raises(UserError, match="no such folder"):
        opened(table(), image_model="./nowhere")
    bert = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=50,
    )  # fmt: skip
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is no image encoder"):
        opened(table(), image_model=str(tmp_path / "bert"))


def test_a_model_of_texts(tmp_path):
    words = sorted({word for texts in pictures(16)[1] for text in texts for word in text.split()})
    model = save_bert(tmp_path / "bert", words=words)
    splits = opened(table(), text_model=model, validation=0)
    assert splits.info.shape[1] == 16
    # sentence vectors of the model are of length 1
    assert torch.allclose(splits.train.second.values.norm(dim=1), torch.ones(splits.train.pairs))
    assert encoder_of("text", splits.info) is None
    strange = save_bert(tmp_path / "strange", words=["zebra"])
    with pytest.raises(UserError, match="does not know these texts"):
        opened(table(), text_model=strange)


# -- mistakes --------------------------------------------------------------------------------------


def test_pairs_without_captions_are_dropped_and_counted():
    images, captions = pictures(12)
    captions[3], captions[5] = ["", "  "], []
    captions[7] = [None, "a square"]
    splits = opened((images, captions), test=0, validation=0)
    assert len(splits.train) == 10
    assert "2 of 12 items lack a field and are dropped" in splits.info.notes
    with pytest.raises(UserError, match="no pair of split 'train' is complete"):
        opened((images, [[""]] * 12), test=0, validation=0)


def broken_table(bad):
    images, captions = pictures(20)
    encoded = []
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        encoded.append({"bytes": b"broken" if number in bad else buffer.getvalue(), "path": None})
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    columns = {"image": encoded, "caption": [texts[0] for texts in captions]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_unreadable_images():
    with pytest.raises(UserError, match="1 of 20 images cannot be read: train row 4"):
        opened(broken_table({4}), test=0, validation=0)
    splits = opened(broken_table({4}), test=0, validation=0, max_corrupt=1)
    assert len(splits.train) == 19
    assert any("1 pairs with unreadable images dropped" in note for note in splits.info.notes)
    assert not any("lack a field" in note for note in splits.info.notes)
    with pytest.raises(UserError, match="no image of split 'train' can be opened"):
        opened(broken_table(set(range(20))), test=0, validation=0)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"caption": "x", "title": "y"}, {}, "several columns could be the text"),
        ({"caption": "x"}, {"text": "caprion"}, "Did you mean 'caption'"),
        ({"caption": "x"}, {"image": "photos"}, "unknown column 'photos'"),
        ({"number": 3}, {}, "no column holds captions"),
        ({"number": 3}, {"text": "number"}, "column 'number' holds no captions"),
        ({"caption": "x"}, {"image": "number"}, "unknown column 'number'"),
    ],
)
def test_columns_that_do_not_fit(columns, options, message):
    images, _ = pictures(8)
    values = {"photo": images} | {name: [value] * 8 for name, value in columns.items()}
    features = {"photo": datasets.Image()} | {
        name: datasets.Value("string" if isinstance(value, str) else "int64")
        for name, value in columns.items()
    }
    made = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    with pytest.raises(UserError, match=message):
        opened(made, **options)


def test_tables_without_images_or_with_one_field():
    texts = datasets.Dataset.from_dict({"caption": ["a", "b"], "number": [1, 2]})
    with pytest.raises(UserError, match="no column holds images"):
        opened(texts)
    alone = datasets.Dataset.from_dict({"embedding": vectors(5)[0].tolist()})
    with pytest.raises(UserError, match="one column of vectors, and no other field"):
        opened(alone)
    first, second = vectors(6)
    unclear = datasets.Dataset.from_dict({"a": first.tolist(), "b": second.tolist()})
    with pytest.raises(UserError, match="several columns could be the text"):
        opened(unclear)
    assert opened(unclear, image="a", text="b", validation=0).info.shape == (12, 10)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


def test_values_from_python_that_do_not_fit():
    first, second = vectors(8)
    with pytest.raises(UserError, match=r"fields of split 'train' differ in number.*8.*7"):
        opened((first, second[:7]))
    bad = first.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(UserError, match="1 vectors are NaN or infinite, the first in row 3"):
        opened((bad, second))
    with pytest.raises(UserError, match="lacks the field 'text'"):
        opened({"train": {"image": first, "texts": second}})
    with pytest.raises(UserError, match="a stream cannot be sampled"):
        opened(Stream())
    with pytest.raises(UserError, match="item 0 is no pair"):
        opened(["a", "b"])
    with pytest.raises(UserError, match="several texts"):
        opened(([["a", "b"]] * 8, second))
    with pytest.raises(UserError, match="splits differ in the length of their vectors"):
        opened({"train": (first, second), "test": (first[:, :5], second)})
    with pytest.raises(UserError, match="holds ready vectors"):
        opened((first, second), image_space="pixels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "class"}, "pairs have no label column"),
        ({"names": ("image", "image")}, "two different plain words"),
        ({"image": "a", "text": "a"}, "name the same column"),
        ({"image_model": "m", "image_space": "pixels"}, "pixels reads no model"),
        ({"text_model": "m", "text_space": "tokens"}, "tokens reads no model"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValidationError, match=message):
        PairData(**options)


# -- real data -------------------------------------------------------------------------------------


@pytest.mark.skipif(not FLICKR.is_dir(), reason=f"needs {FLICKR.name} in MMDD_SHARED_DATA")
def test_flickr8k():
    assert modality_of(str(FLICKR)) == "pairs"
    splits = opened(str(FLICKR))
    assert splits.info.sizes == {"train": 753, "validation": 113, "test": 125}
    assert (splits.train.pairs, splits.test.pairs) == (5 * 753, 625)
    assert dict(splits.info.columns) == {"image": "image", "text": "captions"}
    assert splits.info.normalisation["gallery"]["test"] == [125, 625]
