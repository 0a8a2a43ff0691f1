"""Every kind of source: the same images and labels arrive, in their order."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from image_sets import KEEP_ALL, folder_of, labels, opened, pixels, png, stored, table
from PIL import Image


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_tables_from_python_in_order():
    images = pixels(20)
    data = datasets.DatasetDict(train=table(images, labels(20)), test=table(images, labels(20)))
    splits = opened(data, validation=0)
    assert np.array_equal(stored(splits.train)[:, 0], images)
    assert splits.train.targets.tolist() == labels(20).tolist()
    assert splits.info.names == ("class 0", "class 1")
    assert splits.info.columns == {"image": "image", "label": "label"}
    assert splits.info.notes == ()


def test_one_table_shuffled_filtered_or_formatted():
    images = pixels(40)
    plain = table(images, labels(40), extra=list(range(40)))
    order = np.random.default_rng(0).permutation(40)[:30]
    for chosen in (plain.select(order), plain.select(order).with_format("torch")):
        splits = opened(chosen, **KEEP_ALL)
        assert np.array_equal(stored(splits.train)[:, 0], images[order])
        assert splits.train.targets.tolist() == labels(40)[order].tolist()


MODES = {
    "L": Image.new("L", (4, 4), 77),
    "1": Image.new("1", (4, 4), 1),
    "I;16": Image.fromarray(np.full((4, 4), 77 * 257, np.uint16)),
    "LA": Image.new("LA", (4, 4), (0, 0)),
    "RGB": Image.new("RGB", (4, 4), (10, 20, 30)),
    "RGBA": Image.new("RGBA", (4, 4), (10, 20, 30, 0)),
    "P": Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4),
    "CMYK": Image.new("CMYK", (4, 4), (255, 0, 0, 0)),
}
SHOWN = {
    "L": [77], "1": [255], "I;16": [77], "LA": [255],
    "RGB": [10, 20, 30], "RGBA": [255, 255, 255], "P": [10, 20, 30], "CMYK": [0, 255, 255],
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    code = {"bytes": png(MODES[mode], format=kind), "path": None}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"img": [code] * 4, "label": [0, 1, 0, 1]}, features=features)
    splits = opened(data, **KEEP_ALL)
    assert splits.info.shape == (len(SHOWN[mode]), 4, 4)
    assert splits.info.columns == {"image": "img", "label": "label"}
    assert stored(splits.train)[2, :, 1, 1].tolist() == SHOWN[mode]
    assert any("white" in note for note in splits.info.notes) == (mode in ("LA", "RGBA"))
    assert opened(data, channels=3, **KEEP_ALL).info.shape == (3, 4, 4)
    assert opened(data, channels=1, **KEEP_ALL).info.shape == (1, 4, 4)


def test_half_transparent_is_mixed_with_white_and_palettes_may_be_clear():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0])
    data = [png(half), png(palette, transparency=0)]
    made = datasets.Dataset.from_dict({"image": data * 2, "label": ["a", "b"] * 2})
    values = stored(opened(made, **KEEP_ALL).train)
    assert values[0, :, 0, 0].tolist() == [127] * 3
    assert values[1, :, 0, 0].tolist() == [255] * 3


def test_mixed_grey_and_colour_are_rgb():
    images = [*pixels(6), *pixels(6, (6, 6, 3))]
    splits = opened(table(images, labels(12)), **KEEP_ALL)
    assert splits.info.shape == (3, 6, 6)
    assert "grey and colour images are mixed (50% grey)" in splits.info.notes[0]
    grey = opened(table(images, labels(12)), channels=1, **KEEP_ALL)
    assert np.array_equal(stored(grey.train)[:6, 0], np.stack(images[:6]))
    assert "6 colour images were turned grey" in grey.info.notes


def test_exif_orientation():
    wide = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 4, 0).repeat(4, 1))  # 4 high, 8 wide
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    turned = png(wide, format="JPEG", exif=exif, quality=95)
    made = datasets.Dataset.from_dict({"image": [turned] * 4, "label": [0, 1] * 2})
    splits = opened(made, **KEEP_ALL)
    assert splits.info.shape == (1, 8, 4)
    assert stored(splits.train)[0, 0, :4].max() < 30
    assert stored(splits.train)[0, 0, 4:].min() > 225


def test_image_folders(tmp_path):
    root = tmp_path / "with splits"
    folder_of(root, pixels(12), labels(12, 3), "train")
    folder_of(root, pixels(6, seed=1), labels(6, 3), "test")
    splits = opened(str(root), validation=3)
    assert dict(splits.info.sizes) == {"train": 9, "validation": 3, "test": 6}
    assert splits.info.names == ("kind 0", "kind 1", "kind 2")
    assert np.array_equal(stored(splits.test)[:2, 0], pixels(6, seed=1)[[0, 3]])  # class by class
    flat = tmp_path / "without"
    folder_of(flat, pixels(12), labels(12))
    assert dict(opened(flat).info.sizes) == {"train": 9, "validation": 1, "test": 2}


def test_mixed_jpegs(tmp_path):
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, (200, 2))
    images = [np.full((*size, 3), 60 + 120 * (k % 2), np.uint8) for k, size in enumerate(sizes)]
    folder_of(tmp_path / "photos", images, labels(200), kind="jpg")
    splits = opened(str(tmp_path / "photos"), **KEEP_ALL)
    side = round(float(np.median(sizes.min(axis=1))))
    assert splits.info.shape == (3, side, side)
    assert "resized and cropped" in splits.info.notes[0]
    means = stored(splits.train).float().mean((1, 2, 3))
    assert torch.equal(means > 120, splits.train.targets == 1)
    assert opened(str(tmp_path / "photos"), size=32).info.shape == (3, 32, 32)
    assert opened(str(tmp_path / "photos"), size=(16, 24)).info.shape == (3, 16, 24)


def test_most_common_size_wins():
    images = [*pixels(9), *pixels(3, (12, 24))]
    splits = opened(table(images, labels(12)), **KEEP_ALL)
    assert splits.info.shape == (1, 6, 6)
    assert "images of 6-12x6-24 (height x width) are resized" in splits.info.notes[0]
    half = Image.fromarray(images[9]).resize((12, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(stored(splits.train)[9, 0], np.asarray(half.crop((3, 0, 9, 6))))


def test_parquet_folder_with_configurations(tmp_path):
    root = tmp_path / "table"
    root.mkdir()
    table(pixels(20), labels(20)).to_parquet(root / "a.parquet")
    table(pixels(8), labels(8)).to_parquet(root / "b.parquet")
    card = (
        "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: a.parquet\n"
    )
    card += "  - split: test\n    path: b.parquet\n"
    (root / "README.md").write_text(card.format("default") + "---\n")
    assert dict(opened(root).info.sizes) == {"train": 18, "validation": 2, "test": 8}
    second = "- config_name: small\n  data_files:\n  - split: train\n    path: b.parquet\n---\n"
    (root / "README.md").write_text(card.format("large") + second)
    assert opened(root, config="small", **KEEP_ALL).info.sizes["train"] == 8
    with pytest.raises(
        ValueError, match=r"several configurations.*large, small.*data\.config=NAME"
    ):
        opened(root)
    with pytest.raises(
        ValueError, match=r"several configurations.*large, small.*data\.config=NAME"
    ):
        opened(root, config="medium")


def test_saved_to_disk_and_single_files(tmp_path):
    plain = table(pixels(20), labels(20))
    plain.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=plain, test=plain).save_to_disk(tmp_path / "two")
    plain.to_parquet(tmp_path / "file.parquet")
    expected = pixels(20)
    for name in ("one", "two", "file.parquet", "one/data-00000-of-00001.arrow"):
        splits = opened(str(tmp_path / name), **KEEP_ALL)
        assert np.array_equal(stored(splits.train)[:, 0], expected), name
        assert splits.info.names == ("class 0", "class 1")
    assert opened(str(tmp_path / "two")).info.sizes["test"] == 20


@pytest.mark.parametrize("with_json", [False, True])
def test_webdataset(tmp_path, with_json):
    path = tmp_path / "shard.tar"
    images = pixels(12)
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            code = number % 3
            label = ("json", json.dumps({"label": code})) if with_json else ("cls", str(code))
            for suffix, data in (("png", png(image)), (label[0], label[1].encode())):
                entry = tarfile.TarInfo(f"{number:03}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    splits = opened(str(path), **KEEP_ALL)
    assert np.array_equal(stored(splits.train)[:, 0], images)
    assert splits.train.targets.tolist() == labels(12, 3).tolist()
    assert splits.info.columns == {"image": "png", "label": "json.label" if with_json else "cls"}


def test_csv_of_file_names(tmp_path):
    folder_of(tmp_path, pixels(6), [0] * 6)
    rows = [f"kind 0/{number:04}.png,{'cat' if number % 2 else 'dog'}" for number in range(6)]
    (tmp_path / "list.csv").write_text("file,animal\n" + "\n".join(rows))
    splits = opened(tmp_path / "list.csv", **KEEP_ALL)
    assert np.array_equal(stored(splits.train)[:, 0], pixels(6))
    assert splits.info.names == ("cat", "dog")
    assert splits.train.targets.tolist() == [1, 0] * 3


ARRAY = pixels(12, (5, 7))
COLOUR = pixels(12, (5, 7, 3))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (ARRAY, ARRAY[:, None]),
        (torch.from_numpy(ARRAY), ARRAY[:, None]),
        (ARRAY[:, None], ARRAY[:, None]),
        (ARRAY[..., None], ARRAY[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (torch.from_numpy(COLOUR).permute(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (ARRAY.astype(np.int64), ARRAY[:, None]),
        (ARRAY.astype(np.uint16) * 257, ARRAY[:, None]),
        (ARRAY > 100, (ARRAY[:, None] > 100) * np.uint8(255)),
        ([*COLOUR], COLOUR.transpose(0, 3, 1, 2)),
        ([Image.fromarray(image) for image in ARRAY], ARRAY[:, None]),
    ],
)
def test_pairs_in_every_layout(images, expected):
    splits = opened((images, torch.from_numpy(labels(12))), **KEEP_ALL)
    assert stored(splits.train).dtype == torch.uint8
    assert np.array_equal(stored(splits.train), expected)
    assert splits.info.names == ("0", "1")


def test_float_pairs_keep_their_range():
    images = np.random.default_rng(0).normal(2, 3, (30, 3, 4, 4)).astype(np.float64)
    images[:, 1] = 0.5
    splits = opened((images, ["a", "b", "c"] * 10), **KEEP_ALL)
    assert torch.equal(stored(splits.train), torch.from_numpy(images).float())
    info = splits.info.normalisation
    assert info["mean"] == pytest.approx(images.mean((0, 2, 3)), abs=1e-6)
    assert info["std"] == pytest.approx([images[:, 0].std(), 1.0, images[:, 2].std()], abs=1e-6)
    assert info["range"] == pytest.approx([images.min(), images.max()])
    assert any("already scaled" in note for note in splits.info.notes)
    inside = opened((torch.rand(30, 4, 4), labels(30)), **KEEP_ALL).info
    assert inside.normalisation["range"] == [0.0, 1.0]
    assert inside.notes == ()


def test_arrays_are_resized_and_recoloured():
    smooth = np.linspace(0, 255, 64, dtype=np.uint8).repeat(64).reshape(1, 64, 64).repeat(8, 0)
    by_bytes = opened((smooth, labels(8)), size=16, channels=3, **KEEP_ALL)
    by_floats = opened(
        (smooth.astype(np.float32) / 255, labels(8)), size=16, channels=3, **KEEP_ALL
    )
    assert by_bytes.info.shape == by_floats.info.shape == (3, 16, 16)
    torch.testing.assert_close(
        stored(by_bytes.train) / 255, stored(by_floats.train), atol=0.004, rtol=0
    )
    grey = opened((COLOUR, labels(12)), channels=1, **KEEP_ALL)
    assert np.array_equal(stored(grey.train)[3, 0], Image.fromarray(COLOUR[3]).convert("L"))


def test_other_channel_numbers_are_kept():
    images = torch.rand(12, 9, 20, 20)
    assert opened((images, labels(12)), size=10).info.shape == (9, 10, 10)


def test_dict_of_pairs():
    source = {"train": (ARRAY, labels(12)), "test": (ARRAY[:4], [0, 1, 1, 0])}
    assert dict(opened(source, validation=2).info.sizes) == {
        "train": 10, "validation": 2, "test": 4,
    }  # fmt: skip


class Things(torch.utils.data.Dataset):
    classes = ("ant", "bee")

    def __init__(self, images):
        self.images = images
        self.reads = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index], index % 2


@pytest.mark.parametrize("convert", [Image.fromarray, np.array, torch.from_numpy])
@pytest.mark.parametrize("images", [ARRAY, COLOUR])
def test_torch_data_sets(convert, images):
    things = Things([convert(image) for image in images])
    splits = opened(things, **KEEP_ALL)
    expected = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    assert np.array_equal(stored(splits.train), expected)
    assert splits.info.names == ("ant", "bee")
    assert things.reads == 12


def test_torch_data_sets_of_floats_subsets_and_workers():
    tensors = torch.utils.data.TensorDataset(torch.rand(20, 3, 4, 4), torch.arange(20) % 2)
    assert torch.equal(stored(opened(tensors, **KEEP_ALL).train), tensors.tensors[0])
    part = torch.utils.data.Subset(tensors, [3, 4, 7, 8])
    assert torch.equal(stored(opened(part, **KEEP_ALL).train), tensors.tensors[0][[3, 4, 7, 8]])
    by_processes = opened(Things([*ARRAY]), workers=2, **KEEP_ALL)
    assert np.array_equal(stored(by_processes.train)[:, 0], ARRAY)


@pytest.mark.parametrize("kind", ["2d", "3d", "lists", "float"])
def test_array_columns(kind):
    images = COLOUR if kind == "3d" else ARRAY
    if kind == "float":
        images = images.astype(np.float32) / 255
    feature = {
        "2d": datasets.Array2D((5, 7), "uint8"),
        "3d": datasets.Array3D((5, 7, 3), "uint8"),
        "lists": datasets.List(datasets.List(datasets.Value("uint8"))),
        "float": datasets.Array2D((5, 7), "float32"),
    }[kind]
    features = datasets.Features({"frame": feature, "target": datasets.Value("int32")})
    made = datasets.Dataset.from_dict(
        {"frame": list(images), "target": labels(12)}, features=features
    )
    expected = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    assert np.array_equal(stored(opened(made, **KEEP_ALL).train), expected)
    shuffled = opened(made.select([5, 0, 7, 2]).with_format("numpy"), **KEEP_ALL)
    assert np.array_equal(stored(shuffled.train), expected[[5, 0, 7, 2]])
