"""Generated pairs: squares whose place and brightness their captions tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

PLACES = {"top left": (0, 0), "top right": (0, 1), "low left": (1, 0), "low right": (1, 1)}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230), "white": (250,) * 3}


def pictures(count, seed=0, side=24):
    """`count` PIL images and two captions of each."""
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for number in range(count):
        place = list(PLACES)[number % 4]
        colour = list(COLOURS)[(number // 4) % 4]
        pixels = rng.integers(0, 60, (side, side, 3)).astype(np.uint8)
        row, column = (half * side // 2 for half in PLACES[place])
        pixels[row + 2 : row + side // 2 - 2, column + 2 : column + side // 2 - 2] = COLOURS[colour]
        images.append(Image.fromarray(pixels))
        texts = [f"a {colour} square at the {place}", f"{place}: something {colour}"]
        captions.append(texts if number % 3 else texts[::-1])
    return images, captions


def vectors(count, seed=0, several=0):
    """Vectors [count, 12] and [count, 10] (or [count, several, 10]) of one hidden cause."""
    mix = torch.Generator().manual_seed(99)
    to_first, to_second = torch.randn(5, 12, generator=mix), torch.randn(5, 10, generator=mix)
    stream = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 5, generator=stream)
    first = hidden @ to_first + 0.1 * torch.randn(count, 12, generator=stream)
    shape = (count, several, 10) if several else (count, 10)
    second = (hidden @ to_second)[:, None] if several else hidden @ to_second
    return first, second + 0.1 * torch.randn(shape, generator=stream)


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
