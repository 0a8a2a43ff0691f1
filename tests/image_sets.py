"""Small image sets for the tests, and how the tests look into an opened one."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from mmdd.modalities.images.data import open_images
from mmdd.modalities.images.options import ImageData
from mmdd.real import ResidentData

KEEP_ALL = {"validation": 0, "test": 0.0}  # training items in the order of the source


def pixels(count, shape=(6, 6), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count, classes=2):
    return np.arange(count) % classes


def opened(source, **options):
    return open_images(source, ImageData(**options), torch.device("cpu"))


def stored(part):
    """Pixels as read, [N, C, H, W]."""
    assert isinstance(part, ResidentData)
    return part.values


def all_inputs(part):
    return torch.cat([batch.inputs for batch in part.batches(16)])


def png(array, **save):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, save.pop("format", "PNG"), **save)
    return buffer.getvalue()


def table(images, codes, **columns):
    """A datasets table whose images are encoded, without temporary files."""
    encoded = [{"bytes": png(image), "path": None} for image in images]
    label = datasets.ClassLabel(names=[f"class {n}" for n in range(max(codes) + 1)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    data = {"image": encoded, "label": list(map(int, codes)), **columns}
    for name, values in columns.items():
        features[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    return datasets.Dataset.from_dict(data, features=features)


def folder_of(root, images, codes, split="", kind="png"):
    for number, (image, code) in enumerate(zip(images, codes, strict=True)):
        folder = root / split / f"kind {code}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04}.{kind}")
