"""Small sets of moving blobs, and how the tests look into an opened one."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from mmdd.modalities.video.data import open_videos
from mmdd.modalities.video.options import VideoData

KEEP_ALL = {"validation": 0, "test": 0.0}  # training items in the order of the source


def blobs(count, frames=6, size=(8, 10), channels=1, classes=2, seed=0):
    """Clips [count, T, H, W, C] uint8 of a bright square, and their classes.

    Odd classes move to the right, even ones to the left, from places that tell nothing.
    """
    random = np.random.default_rng(seed)
    clips = random.integers(0, 40, (count, frames, *size, channels), dtype=np.uint8)
    codes = np.arange(count) % classes
    for clip, code in zip(clips, codes, strict=True):
        x, y = random.integers(size[1]), random.integers(size[0] - 2)
        step = 1 if code % 2 else -1
        for time, frame in enumerate(clip):
            places = (x + step * time + np.arange(3)) % size[1]
            frame[y : y + 3, places] = 200
    return clips, codes


def opened(source, **options):
    return open_videos(source, VideoData(**options), torch.device("cpu"))


def stored(part):
    """Pixels as kept, [N, C, T, H, W]."""
    return part.values


def gif(clip):
    """Encoded bytes of frames [T, H, W] or [T, H, W, 3]."""
    first, *rest = [Image.fromarray(frame) for frame in clip]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=40, disposal=2)
    return buffer.getvalue()


def png(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def array_table(clips, codes, names=("left", "right")):
    features = datasets.Features(
        {
            "frames": datasets.Array4D(clips.shape[1:], "uint8"),
            "label": datasets.ClassLabel(names=list(names)),
        }
    )
    values = {"frames": list(clips), "label": codes.tolist()}
    return datasets.Dataset.from_dict(values, features=features)


def frame_table(clips, codes):
    """Lists of encoded frames; clips [N, T, H, W, 1]."""
    features = datasets.Features(
        {
            "pictures": datasets.List(datasets.Image()),
            "label": datasets.ClassLabel(names=["left", "right"]),
        }
    )
    encoded = [[{"bytes": png(f[..., 0]), "path": None} for f in clip] for clip in clips]
    return datasets.Dataset.from_dict(
        {"pictures": encoded, "label": codes.tolist()}, features=features
    )
