"""Images leave as 8-bit columns and as a picture."""

from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mmdd.modalities.images import show
from mmdd.modality import DataInfo


def make_info(shape, names=("cat", "dog", "猫"), limits=(0.0, 1.0)):
    channels = shape[0]
    return DataInfo(
        modality="images",
        task="classification",
        source="/somewhere/photos",
        shape=shape,
        classes=len(names),
        names=tuple(names),
        fingerprint="0" * 64,
        normalisation={
            "mean": [0.1 * (c + 1) for c in range(channels)],
            "std": [0.2 + 0.1 * c for c in range(channels)],
            "range": list(limits),
        },
        columns={},
        sizes={"train": 100},
    )


def normalised(pixels, info):
    mean = torch.tensor(info.normalisation["mean"]).view(-1, 1, 1)
    std = torch.tensor(info.normalisation["std"]).view(-1, 1, 1)
    return (pixels - mean) / std


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_every_byte_comes_back(channels, mode):
    info = make_info((channels, 16, 8))
    pixels = torch.arange(2 * channels * 16 * 8).remainder(256).view(2, channels, 16, 8)
    inputs = normalised(pixels / 255, info).requires_grad_()
    columns, features = show.to_columns(inputs, torch.tensor([2, 0]), info)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    assert made.features["label"].names == ["cat", "dog", "猫"]
    assert made["label"][:] == [2, 0]
    for item, wanted in zip(made, pixels, strict=True):
        assert item["image"].mode == mode
        assert item["image"].size == (8, 16)
        found = np.asarray(item["image"]).reshape(16, 8, channels).transpose(2, 0, 1)
        assert np.array_equal(found, wanted.numpy())


def test_values_are_clipped_and_rounded():
    info = make_info((1, 1, 4))
    values = torch.tensor([-0.3, 1.7, 0.5 - 1e-3, 0.5 + 1e-3]).view(1, 1, 1, 4)
    columns, _ = show.to_columns(normalised(values, info), torch.tensor([0]), info)
    assert list(columns["image"][0].tobytes()) == [0, 255, 127, 128]
    units = show.denormalise(normalised(values, info), info)
    assert torch.allclose(units, values.clamp(0, 1), atol=1e-6)


def test_floats_of_another_range_are_scaled():
    info = make_info((1, 1, 3), limits=(-1.0, 3.0))
    values = torch.tensor([-1.0, 1.0, 3.0]).view(1, 1, 1, 3)
    units = show.denormalise(normalised(values, info), info)
    assert torch.allclose(units.flatten(), torch.tensor([0.0, 0.5, 1.0]), atol=1e-6)
    without = dataclasses.replace(
        info, normalisation={k: info.normalisation[k] for k in ("mean", "std")}
    )
    assert show.denormalise(normalised(values, info), without).flatten().tolist() == [0, 1, 1]


def test_soft_labels_stand_beside_their_largest_class():
    info = make_info((3, 4, 4))
    soft = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], requires_grad=True)
    columns, features = show.to_columns(torch.zeros(2, 3, 4, 4), soft, info)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    assert made["label"][:] == [1, 0]
    assert torch.equal(torch.tensor(made["soft_label"][:]), soft)
    assert made.features["soft_label"] == datasets.List(datasets.Value("float32"), length=3)


def test_other_numbers_of_channels_stay_numbers():
    info = make_info((5, 4, 3))
    values = torch.rand(2, 5, 4, 3)
    columns, features = show.to_columns(normalised(values, info), torch.tensor([0, 1]), info)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    assert set(made.column_names) == {"pixels", "label"}
    assert np.allclose(np.array(made[1]["pixels"]), values[1], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((1, 8, 8), (48, 48)),
        ((1, 28, 28), (56, 56)),
        ((3, 32, 32), (64, 64)),
        ((3, 64, 64), (64, 64)),
        ((3, 224, 112), (72, 144)),
        ((1, 1, 1), (48, 48)),
        ((1, 2, 100), (100, 2)),
        ((2, 8, 8), (48, 48)),
        ((7, 8, 8), (48, 48)),
    ],
)
def test_pictures_of_all_sizes(tmp_path, shape, drawn):
    info = make_info(shape)
    generator = torch.Generator().manual_seed(0)
    inputs = normalised(torch.rand(4, *shape, generator=generator), info)
    path = tmp_path / "picture.png"
    show.picture(inputs, torch.tensor([0, 0, 1, 2]), info, path)
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        width, height = opened.size
    assert width >= show.TEXT_WIDTH
    assert height >= 3 * drawn[1]
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    image = show._resized(Image.new("RGB", (shape[2], shape[1])))
    assert image.size == drawn


def test_images_are_drawn_pixel_by_pixel_in_their_row(tmp_path):
    info = make_info((3, 8, 8), names=("a", "b"))
    colours = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 8, 8)  # red, green, blue
    path = tmp_path / "picture.png"
    show.picture(normalised(colours, info), torch.tensor([1, 0, 1]), info, path)
    with Image.open(path) as opened:
        page = np.asarray(opened)
    corners = []
    for colour in np.eye(3, dtype=np.uint8) * 255:
        rows, columns = np.nonzero((page == colour).all(axis=2))
        corners.append((rows.min(), columns.min()))
        assert len(rows) == 48 * 48
        assert (np.ptp(rows), np.ptp(columns)) == (47, 47)
    red, green, blue = corners
    assert green[0] < red[0] == blue[0]
    assert green[1] == red[1] < blue[1]


def test_what_is_left_out_is_said():
    names = [f"class {n}" for n in range(25)]
    info = make_info((1, 8, 8), names=names)
    numbers = torch.cat([torch.arange(25), torch.full((30,), 3)])
    sheet = show._sheet(torch.zeros(55, 1, 8, 8), numbers, info)
    assert sheet.title == "Synthetic set distilled from photos"
    assert sheet.notes == [
        "55 images of 8 x 8 pixels, grey; 25 classes, 1 to 31 per class",
        "Shown: the first 20 classes; 5 more are left out",
        "Shown: the first 20 images of each class; the rest is left out",
    ]
    assert [name for name, _, _ in sheet.rows] == names[:20]
    assert [(count, len(images)) for _, count, images in sheet.rows][3] == (31, 20)


def test_classes_without_images_are_not_drawn():
    info = make_info((1, 8, 8))
    sheet = show._sheet(torch.zeros(1, 1, 8, 8), torch.tensor([1]), info)
    assert [name for name, _, _ in sheet.rows] == ["dog"]
    assert sheet.notes == ["1 image of 8 x 8 pixels, grey; 1 class, 1 per class"]


def test_long_texts_are_shortened_and_wrapped_to_the_page():
    font = show._fonts()[1]
    for text in ("a very long class name, as ImageNet has them: great white shark" * 3, "x" * 500):
        short = show._fitted(text, font, 200)
        assert font.getlength(short) <= 200
        assert short.startswith(text[:5])
        assert short.endswith(text[-3:])
    assert show._fitted("two\nlines", font, 200) == "two lines"
    lines = show._wrapped("word " * 60, font, 300)
    assert len(lines) > 1
    assert all(font.getlength(line) <= 300 for line in lines)
