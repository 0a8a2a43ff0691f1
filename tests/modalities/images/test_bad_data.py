"""Sets and options that cannot be used: one line that says what, where and what to do."""

import logging
import os

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from image_sets import opened, pixels, png
from PIL import Image

from mmdd.errors import UserError
from mmdd.modalities.images import data as data_module


@pytest.fixture(autouse=True)
def _private_and_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def encoded(count, **columns):
    return datasets.Dataset.from_dict(
        {"image": [png(image) for image in pixels(count)], **columns}
    ).cast_column("image", datasets.Image())


def halves(count):
    return [number % 2 for number in range(count)]


def refused(source, *parts, **options):
    """The one line of the error, which holds every one of `parts`."""
    with pytest.raises(UserError) as caught:
        opened(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    return line


# Names and paths -------------------------------------------------------------------------------


def test_missing_path_names_its_neighbour(tmp_path):
    (tmp_path / "flowers").mkdir()
    path = str(tmp_path / "flower")
    refused(path, f"no such file or folder: '{path}'", f"Did you mean '{tmp_path / 'flowers'}'?")
    refused(str(tmp_path / "zzz"), "no such file", "holds nothing like 'zzz'")
    refused(str(tmp_path / "flwers" / "train"), f"Did you mean '{tmp_path / 'flowers'}'?")
    refused("./no/where", "no such file or folder")
    refused("", "no such file or folder")


def test_missing_path_that_could_be_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "flowers").mkdir(parents=True)
    refused("mine/flower", "no such file", os.path.join("mine", "flowers"))
    refused("set.parquet", "no such file")


@pytest.mark.parametrize("name", ["mnist", "ylecun/mnist"])
def test_hub_out_of_reach(name):
    refused(name, f"'{name}' is not here", "Hub cannot be reached", "local folder")


def test_a_name_much_like_one_that_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    refused("digtis", "Did you mean 'digits'?")
    refused("flovers", "Did you mean 'flowers'?")


def test_a_local_folder_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoded(8, label=halves(8)).save_to_disk("owner/name")
    assert opened("owner/name").info.source == "owner/name"


def test_unknown_to_the_hub(monkeypatch):
    def absent(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    refused("a/b", "has no data set 'a/b'")


def test_unreadable_files(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "cannot be read as a data set")
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    refused(str(tmp_path / "x.parquet"), "cannot be read as a data set")
    (tmp_path / "x.bin").write_bytes(b"")
    refused(str(tmp_path / "x.bin"), "cannot tell what kind", ".parquet")
    encoded(8, label=halves(8)).save_to_disk(tmp_path / "saved")
    refused(str(tmp_path / "saved"), "no configurations", config="large")
    refused(str(tmp_path / "saved"), "data.revision is for sets on the Hub", revision="main")


def test_no_source():
    refused(None, "no data source", "data.source")


# What is handed over from Python ---------------------------------------------------------------


def test_streams_and_strangers():
    stream = encoded(4, label=halves(4)).to_iterable_dataset()
    refused(stream, "a stream cannot be sampled", "Materialise")
    refused(datasets.IterableDatasetDict(train=stream), "a stream cannot be sampled")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    refused(Stream(), "a stream cannot be sampled")
    refused(3, "cannot be opened as images", "datasets.Dataset")
    refused({}, "has no splits")
    refused({"images": 3}, "unknown split 'train'", "images")


class Items:
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


IMAGE = Image.fromarray(pixels(1)[0])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("item", "why"),
    [
        (OSError("gone\nfor ever"), "item 2 of the data set cannot be read: OSError: gone"),
        (7, "expected (image, label), got int"),
        ((IMAGE,), "expected (image, label), got tuple"),
        (("text", 1), "this is no image"),
        ((torch.zeros(9, 20, 30, 40), 1), "cannot tell the channels"),
        ((torch.zeros(3, 6, 6), 1), "some images hold bytes and some floats"),
        ((IMAGE, "a"), "labels are not of one type"),
    ],
)
def test_torch_items(item, why, workers):
    refused(Items((IMAGE, 0), (IMAGE, 1), item), why, workers=workers)


@pytest.mark.parametrize(
    ("images", "labels", "parts"),
    [
        (pixels(4), halves(5), ["differ in number", "(4, 5)"]),
        (pixels(4, (6, 6, 6, 6)), halves(4), ["cannot tell the channels", "(6, 6, 6, 6)"]),
        (pixels(4, (40, 30, 20)), halves(4), ["cannot tell the channels"]),
        (np.full((4, 6, 6), 300), halves(4), ["out of range", "0..255"]),
        (np.zeros((4, 6, 6), complex), halves(4), ["pixels of this type", "complex"]),
        (pixels(4), np.eye(4), ["one class per image", "argmax"]),
        (pixels(4), [0.5, 1.5, 0.5, 1.5], ["fractions"]),
        (pixels(4), [0, 0, 0, 0], ["single class, '0'"]),
        (pixels(4), [-1] * 4, ["no item of split 'train' has a label"]),
        (pixels(0), [], ["no item of split 'train' has a label"]),
        (pixels(12, (9, 20, 20)), halves(12), ["1 or 3 channels"]),
    ],
)
def test_pairs(images, labels, parts):
    refused((images, labels), *parts, channels=3)


@pytest.mark.parametrize("store", ["device", "disk"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_not_finite(store, wrong):
    images = np.random.default_rng(0).random((300, 6, 6))
    images[250:252, 0, :3] = wrong
    refused((images, halves(300)), "6 pixels are NaN or infinite, the first in image 250")
    features = datasets.Features(
        {"image": datasets.Array2D((6, 6), "float32"), "label": datasets.Value("int64")}
    )
    columns = {"image": list(images), "label": halves(300)}
    made = datasets.Dataset.from_dict(columns, features=features)
    options = {"validation": 0, "test": 0, "store": store, "workers": 0}
    refused(made, "6 pixels are NaN", "image 250 of train", **options)


def test_splits_of_different_type():
    source = {"train": (pixels(8), halves(8)), "test": (pixels(8) / 255, halves(8))}
    refused(source, "the splits differ in type", "float32")


# Splits and columns ----------------------------------------------------------------------------


def test_splits_that_do_not_fit():
    part = encoded(8, label=halves(8))
    unlabelled = encoded(4, label=[None] * 4).cast_column("label", datasets.Value("int64"))
    source = datasets.DatasetDict(training=part, testing=part, extra=unlabelled)
    refused(source, "unknown split 'train'", "training, testing, extra", "data.train_split=NAME")
    chosen = {"train_split": "training"}
    refused(source, "unknown split 'tset'", "data.test_split", test_split="tset", **chosen)
    refused(source, "no item of split 'extra'", "data.test_split", test_split="extra", **chosen)
    refused(source, "unknown split 'val'", validation_split="val", **chosen)
    strange = datasets.DatasetDict(train=part, test=encoded(4, label=[7] * 4))
    refused(strange, "no class of split 'test' occurs in the training split")
    refused(part, "holds out too many", "at most", validation=7)


def test_empty():
    refused(encoded(8, label=halves(8)).select([]), "split 'train' of Dataset in memory is empty")


def test_ambiguous_columns():
    fine = datasets.ClassLabel(names=["a", "b"])
    made = encoded(8, fine_label=halves(8), coarse_label=halves(8))
    made = made.cast_column("fine_label", fine).cast_column("coarse_label", fine)
    refused(made, "several columns could be the label", "['fine_label', 'coarse_label']",
            "data.label=NAME")  # fmt: skip
    assert opened(made, label="coarse_label").info.columns["label"] == "coarse_label"
    two = encoded(8, mask=[png(image) for image in pixels(8)], label=halves(8))
    two = two.cast_column("mask", datasets.Image())
    refused(two, "several columns could be the image", "['image', 'mask']", "data.image=NAME")
    assert opened(two, image="mask").info.columns["image"] == "mask"


def test_columns_that_do_not_fit():
    made = encoded(40, label=halves(40), caption=[f"a picture {n}" for n in range(40)])
    made = made.add_column("boxes", [[1, 2]] * 40).add_column("price", [n / 7 for n in range(40)])
    refused(made, "unknown label column 'labell'", "Did you mean 'label'?", label="labell")
    refused(made, "unknown image column 'imag'", "Did you mean 'image'?", image="imag")
    refused(made, "column 'caption' holds no images", image="caption")
    refused(made, "'caption' is no label: 40 of 40 values differ", label="caption")
    refused(made, "'boxes' does not hold one class per image", label="boxes")
    refused(made, "'price' holds fractions", label="price")
    refused(made.remove_columns("label"), "no column holds class labels", "data.label=NAME")
    refused(made.remove_columns("image"), "no column holds images", "data.image=NAME")


def test_one_class_or_no_label():
    refused(encoded(8, label=["cat"] * 8), "single class, 'cat'")
    nothing = encoded(8, label=[None] * 8).cast_column("label", datasets.Value("int64"))
    refused(nothing, "no item of split 'train' has a label")


def test_image_folder_of_one_class(tmp_path):
    (tmp_path / "set" / "cat").mkdir(parents=True)
    for number, image in enumerate(pixels(4)):
        Image.fromarray(image).save(tmp_path / "set" / "cat" / f"{number}.png")
    refused(str(tmp_path / "set"), "no column holds class labels", "one folder per class")


def test_ragged_arrays():
    images = [np.zeros((5, 5)).tolist()] * 7 + [np.zeros((5, 4)).tolist()]
    features = datasets.Features(
        {"image": datasets.List(datasets.List(datasets.Value("uint8"))),
         "label": datasets.Value("int64")}
    )  # fmt: skip
    made = datasets.Dataset.from_dict({"image": images, "label": halves(8)}, features=features)
    refused(made, "not all of shape (5, 5)", "datasets.Image")


# Unreadable images -----------------------------------------------------------------------------


def with_broken(rows, count=40):
    codes = [png(image) for image in pixels(count)]
    for row in rows:
        codes[row] = codes[row][:40] if row % 2 else b"no image" if row % 4 else None
    made = datasets.Dataset.from_dict({"image": codes, "label": halves(count)})
    return made.cast_column("image", datasets.Image())


@pytest.mark.parametrize("store", ["device", "disk"])
def test_few_unreadable_images_are_dropped_and_named(store):
    options = {"store": store, "workers": 0, "validation": 0, "test": 0}
    broken = [3, 5, 6, 8, 11, 13, 14]
    splits = opened(with_broken(broken), max_corrupt=7, **options)
    kept = [row for row in range(40) if row not in broken]
    assert splits.info.sizes["train"] == 33
    assert splits.train.targets.tolist() == [row % 2 for row in kept]
    batch = splits.train.select(torch.arange(33))
    mean, std = splits.info.normalisation["mean"][0], splits.info.normalisation["std"][0]
    expected = (torch.from_numpy(pixels(40)[kept]) / 255 - mean) / std
    torch.testing.assert_close(batch.inputs[:, 0], expected, rtol=1e-4, atol=1e-5)
    note = next(note for note in splits.info.notes if "unreadable" in note)
    assert note.startswith("7 unreadable images dropped: train row 3: ")
    assert "row 11" in note
    assert "row 13" not in note
    assert opened(with_broken([3, 5]), max_corrupt=0.05, **options).info.sizes["train"] == 38


@pytest.mark.parametrize("store", ["device", "disk"])
def test_too_many_unreadable_images(store):
    options = {"store": store, "workers": 0}
    parts = ("images cannot be read", "train row", "data.max_corrupt")
    refused(with_broken([3, 5]), "2 of 40", "at most 1", *parts, max_corrupt=1, **options)
    refused(with_broken([3, 5]), "at most 0", *parts, **options)
    refused(with_broken([6]), "1 of 40", *parts, max_corrupt=0, **options)
    refused(with_broken(range(40)), "no image of split 'train' can be opened", **options)


def test_unreadable_files_are_named(tmp_path):
    for number, image in enumerate(pixels(20)):
        folder = tmp_path / "set" / f"kind {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "set" / "kind 1" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    splits = opened(str(tmp_path / "set"), max_corrupt=1)
    assert sum(splits.info.sizes.values()) == 19
    assert any(os.path.join("kind 1", "7.png") in note for note in splits.info.notes)


@pytest.mark.parametrize("store", ["device", "disk"])
def test_a_class_without_readable_training_images_goes(store):
    codes = [png(image) for image in pixels(21)]
    codes[20] = b"no image"
    made = datasets.Dataset.from_dict({"image": codes, "label": ["a", "c"] * 10 + ["b"]})
    splits = opened(made, max_corrupt=1, store=store, workers=0)
    assert splits.info.names == ("a", "c")
    assert splits.train.num_groups == 2
    assert sum(splits.info.sizes.values()) == 20
    assert any("1 of 3 classes have no training image" in note for note in splits.info.notes)


def test_unreadable_images_met_while_streaming(monkeypatch, caplog):
    monkeypatch.setattr(data_module, "SAMPLE_DISK", 4)
    sampled = np.random.default_rng(0).choice(40, 4, replace=False)
    good, *bad = [row for row in range(1, 40) if row not in sampled][:4]
    options = {"store": "disk", "workers": 0, "validation": 0, "test": 0}
    splits = opened(with_broken(bad), max_corrupt=2, **options)
    assert any("4 training images chosen at random" in note for note in splits.info.notes)
    with caplog.at_level(logging.WARNING, logger="mmdd"):
        inputs = splits.train.read(torch.tensor([good, bad[0], bad[0]]))
        splits.train.read(torch.tensor(bad[:1]))
    assert abs(inputs[1:]).max() < 0.02  # blank is the mean, which is zero once normalised
    assert abs(inputs[0]).max() > 0.5
    assert sum(f"row {bad[0]} cannot be read" in line for line in caplog.messages) == 1
    with pytest.raises(UserError, match=r"more than 2 images cannot be read.*data\.max_corrupt"):
        splits.train.read(torch.tensor(bad[1:]))
