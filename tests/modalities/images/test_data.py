"""Opening image sets of every kind: what arrives, in which parts, with which numbers."""

import json
import os
import pickle
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from image_sets import KEEP_ALL, all_inputs, folder_of, labels, opened, pixels, png, stored, table
from pydantic import ValidationError

from mmdd.modalities.images.data import Normalise, open_images
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.tables.splits import hold_out
from mmdd.real import ResidentData
from mmdd.streamed import StreamedData

SHARED = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


# The parts -------------------------------------------------------------------------------------


def test_digits():
    splits = opened("digits")
    info = splits.info
    assert (info.shape, info.classes, info.names) == ((1, 8, 8), 10, tuple("0123456789"))
    assert dict(info.sizes) == {"train": 1294, "validation": 144, "test": 359}
    assert (info.modality, info.task, info.source) == ("images", "classification", "digits")
    values = torch.cat([stored(splits.train), stored(splits.validation), stored(splits.test)])
    assert values.dtype == torch.uint8
    assert values.min() == 0
    assert values.max() == 255
    assert len(values) == 1797
    assert torch.equal(stored(opened("digits", seed=7).test), stored(splits.test))


def test_batches_are_normalised_by_train():
    splits = opened("digits")
    inputs = all_inputs(splits.train)
    assert inputs.dtype == torch.float32
    assert abs(inputs.mean()) < 1e-5
    assert abs(inputs.std(correction=0) - 1) < 1e-4
    exact = stored(splits.train).double() / 255
    assert splits.info.normalisation["mean"] == pytest.approx([exact.mean().item()], rel=1e-12)
    assert splits.info.normalisation["std"] == pytest.approx(
        [exact.std(correction=0).item()], rel=1e-12
    )
    batch = splits.test.select(torch.tensor([5, 0]))
    expected = (stored(splits.test)[[5, 0]] / 255 - exact.mean()) / exact.std(correction=0)
    torch.testing.assert_close(batch.inputs, expected.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(batch.targets, batch.groups)
    assert batch.targets.dtype == torch.int64


def test_normalise():
    prepare = Normalise([0.5, 0.25], [0.1, 1.0])
    values = torch.randint(0, 256, (4, 2, 3, 3), dtype=torch.uint8)
    before = values.clone()
    inputs = pickle.loads(pickle.dumps(prepare))(values)
    assert torch.equal(inputs, prepare(values))
    assert torch.equal(values, before)
    torch.testing.assert_close(prepare.inverse(inputs), values / 255)
    floats = torch.rand(4, 2, 3, 3)
    kept = floats.clone()
    torch.testing.assert_close(prepare.inverse(prepare(floats)), kept)
    assert torch.equal(floats, kept)


def test_hold_outs_are_disjoint_stratified_and_seeded():
    images = pixels(300)
    codes = np.repeat([0, 1, 2], [30, 90, 180])
    splits = opened((images, codes), validation=0.1)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [216, 24, 60]
    assert splits.test.group_sizes.tolist() == [6, 18, 36]
    assert splits.validation.group_sizes.tolist() in ([2, 7, 15], [3, 7, 14])  # of 2.4, 7.2, 14.4
    seen = {stored(part)[i].numpy().tobytes() for part in parts for i in range(len(part))}
    assert len(seen) == 300
    assert sum("held out" in note for note in splits.info.notes) == 2
    again, other = opened((images, codes)), opened((images, codes), seed=1)
    assert torch.equal(stored(again.train), stored(splits.train))
    assert not torch.equal(stored(other.train), stored(splits.train))


def test_the_last_items_of_every_class_can_be_held_out():
    codes = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    kept, held = hold_out(codes, 4, seed=0, which="last")
    assert (kept.tolist(), held.tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9])
    images = pixels(20)
    splits = opened((images, np.repeat([0, 1], 10)), test=0.2, validation=4, hold_out="last")
    first = (np.asarray(images[0]), stored(splits.train)[0].numpy())
    assert np.array_equal(first[0].ravel(), first[1].ravel()), "the order of the data is kept"
    same = opened((images, np.repeat([0, 1], 10)), test=0.2, validation=4, hold_out="last", seed=7)
    assert torch.equal(stored(splits.validation), stored(same.validation))
    assert splits.info.notes[-1].startswith("the last 4 of 16 items")


def test_validation_count_and_cap():
    data = (pixels(100), labels(100))
    assert opened(data, test=0, validation=17).info.sizes["validation"] == 17
    assert opened(data, test=0, validation=0.5, max_validation=9).info.sizes["validation"] == 9
    none = opened(data, test=0, validation=0)
    assert (none.validation, none.test) == (None, None)
    assert dict(none.info.sizes) == {"train": 100, "validation": 0, "test": 0}


@pytest.mark.parametrize("seed", range(5))
def test_hold_out_shares(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 60, 20)
    codes = rng.permutation(np.repeat(np.arange(20), sizes))
    count = len(codes) // 7
    kept, held = hold_out(codes, count, seed)
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(len(codes)))
    share = sizes * count / len(codes)
    assert (abs(np.bincount(codes[held], minlength=20) - share) < 1).all()
    assert not np.array_equal(held, hold_out(codes, count, seed, "validation")[1])


def test_every_class_keeps_a_training_item():
    codes = np.array([0] * 50 + [1, 2, 2, 3, 3])
    splits = opened((pixels(55), codes), test=0.4, validation=0.4)
    assert (splits.train.group_sizes > 0).all()
    singles = opened((pixels(10), np.arange(10)))
    assert (len(singles.train), singles.test, singles.validation) == (10, None, None)
    assert sum("no class has two" in note for note in singles.info.notes) == 2


@pytest.mark.parametrize(
    ("splits", "options", "expected", "note"),
    [
        ({"train": 40, "test": 10}, {}, (36, 4, 10), "held out for validation"),
        ({"train": 40, "validation": 8, "test": 10}, {}, (40, 8, 10), None),
        ({"train": 40, "val": 8}, {}, (36, 4, 8), "split 'val' is the test set"),
        ({"train": 40}, {}, (29, 3, 8), "held out for test"),
        ({"train": 40, "test": -10}, {}, (29, 3, 8), "split 'test' has no labels"),
        ({"train": 40, "validation": 8, "test": -10}, {}, (36, 4, 8), "is the test set"),
        ({"train": 40, "extra": 12, "test": 10}, {"train_split": "extra"}, (11, 1, 10), None),
        ({"train": 40, "extra": 12, "test": 10}, {"test_split": "extra"}, (36, 4, 12), None),
        ({"train": 40, "extra": 12}, {"validation_split": "extra"}, (32, 12, 8), None),
        ({"train": 40, "validation": 8, "test": 10}, {"validation": 0}, (40, 0, 10), None),
    ],
)
def test_roles(splits, options, expected, note):
    made = {}
    for number, (name, size) in enumerate(splits.items()):
        part = table(pixels(abs(size), seed=number), labels(abs(size)))
        if size < 0:  # as the Hub stores hidden labels
            part = part.remove_columns("label").add_column("label", [-1] * -size)
            part = part.cast_column("label", made["train"].features["label"])
        made[name] = part
    result = opened(datasets.DatasetDict(made), **options)
    assert tuple(result.info.sizes[role] for role in ("train", "validation", "test")) == expected
    assert note is None or any(note in line for line in result.info.notes)


# Labels ----------------------------------------------------------------------------------------


def with_labels(values, kind=None):
    images = [png(image) for image in pixels(len(values))]
    made = datasets.Dataset.from_dict({"image": images, "label": values})
    return made.cast_column("label", kind) if kind else made


@pytest.mark.parametrize(
    ("values", "names", "targets"),
    [
        (["pear", "fig"] * 2, ("fig", "pear"), [1, 0] * 2),
        ([10, 2] * 2, ("2", "10"), [1, 0] * 2),
        ([-1, 1] * 2, ("-1", "1"), [0, 1] * 2),
        ([True, False] * 2, ("False", "True"), [1, 0] * 2),
        ([2.0, 7.0] * 2, ("2", "7"), [0, 1] * 2),
    ],
)
def test_labels_without_names(values, names, targets):
    splits = opened(with_labels(values), **KEEP_ALL)
    assert splits.info.names == names
    assert splits.train.targets.tolist() == targets


@pytest.mark.parametrize("values", [[0, None, 1, None, 1, 0], [0, -1, 1, -1, 1, 0], ["a", None, "b", None, "b", "a"], [0.0, None, 1.0, float("nan"), 1.0, 0.0]])  # fmt: skip # noqa: E501
def test_missing_labels_are_dropped(values):
    splits = opened(with_labels(values), **KEEP_ALL)
    assert splits.train.targets.tolist() == [0, 1, 1, 0]
    assert np.array_equal(stored(splits.train)[:, 0], pixels(6)[[0, 2, 4, 5]])
    assert "2 items of 'train' without label dropped" in splits.info.notes


def test_classes_come_from_train_by_name():
    names = datasets.ClassLabel(names=["a", "b", "c", "d"])
    other = datasets.ClassLabel(names=["d", "c", "b", "a"])
    source = datasets.DatasetDict(
        train=with_labels([1, 3, 1, 3], names), test=with_labels([0, 1, 2, 3], other)
    )
    splits = opened(source, validation=0)
    assert splits.info.names == ("b", "d")
    assert splits.train.targets.tolist() == [0, 1, 0, 1]
    assert splits.test.targets.tolist() == [1, 0]
    assert "2 of 4 classes have no training image and are left out (a, c)" in splits.info.notes
    assert any("do not occur in training (c, a)" in note for note in splits.info.notes)


def test_label_columns():
    extra = table(pixels(12), labels(12), label_name=["x"] * 12, domain=labels(12, 3).tolist())
    assert opened(extra).info.columns["label"] == "label"
    assert opened(extra, label="domain").info.classes == 3
    two = datasets.Dataset.from_dict(
        {
            "a": [png(image) for image in pixels(12)],
            "kind": ["u", "v"] * 6,
            "note": [str(k) for k in range(12)],
        }
    )
    assert opened(two).info.columns == {"image": "a", "label": "kind"}


def test_ten_thousand_classes_open_fast():
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(10_000), 2))
    images = np.zeros((20_000, 4, 4), np.uint8)
    images[:, 0, 0] = codes % 251
    started = time.perf_counter()
    splits = opened((images, [f"person {code}" for code in codes]))
    assert time.perf_counter() - started < 4
    assert splits.info.classes == 10_000
    assert (splits.train.group_sizes >= 1).all()
    assert sum(splits.info.sizes.values()) == 20_000
    assert splits.info.sizes["test"] == 4000


# Where the images are kept ---------------------------------------------------------------------


def test_streamed_equals_resident_bit_for_bit(tmp_path):
    folder_of(tmp_path / "set", pixels(60, (9, 11, 3)), labels(60, 3), "train")
    folder_of(tmp_path / "set", pixels(20, (9, 11, 3), seed=1), labels(20, 3), "test")
    source = str(tmp_path / "set")
    resident = opened(source, size=8)
    for workers in (0, 2):
        streamed = opened(source, size=8, store="disk", workers=workers)
        assert streamed.info.sizes == resident.info.sizes
        for role in ("train", "validation", "test"):
            ours, theirs = getattr(streamed, role), getattr(resident, role)
            assert isinstance(ours, StreamedData)
            assert torch.equal(all_inputs(ours), all_inputs(theirs))
            assert torch.equal(ours.targets, theirs.targets)
            draw = [part.sample(2, torch.Generator().manual_seed(3)) for part in (ours, theirs)]
            assert torch.equal(draw[0].inputs, draw[1].inputs)
        assert streamed.train.pool is streamed.test.pool
        assert any("images stay on disk" in note for note in streamed.info.notes)
        streamed.close()


def test_store_by_size():
    data = (pixels(100), labels(100))
    assert isinstance(opened(data, max_resident_bytes=3600).train, ResidentData)
    large = opened(data, max_resident_bytes=3599)
    assert isinstance(large.train, StreamedData)
    assert large.train.pool.workers == 0  # arrays are not copied into processes
    assert torch.equal(all_inputs(large.train), all_inputs(opened(data).train))
    assert isinstance(opened(data, max_resident_bytes=0, store="device").train, ResidentData)


@pytest.mark.parametrize("store", ["device", "disk"])
def test_fingerprint(store):
    made = table(pixels(40), labels(40))

    def digest(source=made, **options):
        return opened(source, store=store, workers=0, **options).info.fingerprint

    first = digest()
    assert len(first) == 64
    assert digest() == first
    different = [digest(size=5), digest(channels=3), digest(seed=1), digest(validation=0)]
    different.append(digest(table(pixels(40, seed=1), labels(40))))
    different.append(digest(table(pixels(40), 1 - labels(40))))
    assert len({first, *different}) == 7


def test_fingerprint_of_arrays_follows_content():
    images = pixels(12, (5, 7))
    for store in ("device", "disk"):
        one = opened((images, labels(12)), store=store).info.fingerprint
        assert opened((images.copy(), labels(12)), store=store).info.fingerprint == one
        changed = images.copy()
        changed[3, 2, 2] ^= 1
        assert opened((changed, labels(12)), store=store).info.fingerprint != one


# Options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": (1, 2, 3)}, {"channels": 2}, {"validation": 1.5}, {"validation": -1},
     {"test": 1.0}, {"store": "ram"}, {"max_corrupt": 2.5}, {"sorce": "x"}, {"workers": -1},
     {"test_split": "train"}, {"validation_split": "a", "test_split": "a"}],
)  # fmt: skip
def test_wrong_options(wrong):
    with pytest.raises(ValidationError):
        ImageData(**wrong)


def test_options_are_plain():
    options = ImageData(size=[8, 6], validation=7, max_corrupt=0)
    assert (options.size, options.height_width) == ((8, 6), (8, 6))
    assert isinstance(options.validation, int)
    assert isinstance(options.max_corrupt, int)
    assert ImageData(size=8).height_width == (8, 8)
    assert ImageData(**json.loads(options.model_dump_json())) == options
    assert all(field.description for field in ImageData.model_fields.values())


def test_source_from_options():
    assert open_images(None, ImageData(source="digits"), "cpu").info.source == "digits"


# Real sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("fashion_mnist", (55_000, 5_000, 10_000), (1, 28, 28)),
        ("cifar10_jpeg", (45_000, 5_000, 10_000), (3, 32, 32)),
    ],
)
def test_shared_sets(name, sizes, shape):
    folder = SHARED / "images" / name
    if not folder.is_dir():
        pytest.skip(f"shared/data/images/{name} is absent")
    started = time.process_time()
    splits = opened(str(folder))
    assert time.process_time() - started < 20
    assert tuple(splits.info.sizes.values()) == sizes
    assert splits.info.shape == shape
    assert splits.info.classes == 10
    first = datasets.load_dataset(str(folder), split="test")[0]
    assert np.array_equal(
        stored(splits.test)[0], np.atleast_3d(np.asarray(first["image"])).transpose(2, 0, 1)
    )
    assert int(splits.test.targets[0]) == first["label"]
