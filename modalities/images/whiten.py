"""ZCA whitening: a linear map that decorrelates the pixels and leaves images recognisable.

With the mean mu [D] and the covariance Sigma = U diag(S) U^T of the normalised, flattened training
images x [D], divisor n - 1 (kornia's ``ZCAWhitening``, which MTT and its successors use)::

    z = (x - mu) W,   W      = U diag(1 / sqrt(S + eps)) U^T
    x = z W^-1 + mu,  W^-1   = U diag(sqrt(S + eps)) U^T

Bell & Sejnowski 1997, "The 'independent components' of natural scenes are edge filters".
Shape suffixes: n images, C channels, H height, W width, D = C H W.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.images.normalise import Normalise
from mmdd.modalities.tables.arrays import Array
from mmdd.modality import DataInfo

MOST_NUMBERS = 64 * 64 * 3  # D of the largest image: two matrices of 0.6 GB each
BLOCK_NUMBERS = 2**22  # converted to float64 at once


def require_small(shape: tuple[int, ...]) -> None:
    """Refuse images of more than `MOST_NUMBERS` numbers."""
    size = math.prod(shape)
    if size > MOST_NUMBERS:
        raise UserError(
            f"images of {'x'.join(map(str, shape))} are too large for data.whiten=zca, "
            f"which keeps matrices of the size [D, D]",
            got=f"D = {size}",
            expected=f"at most {MOST_NUMBERS}, e.g. 64x64 pixels in colour",
            hint="Lower data.size, or leave data.whiten out",
        )


class Covariance:
    """Mean and covariance of flattened images [D] that come in blocks.

    Only sums in float64 are kept. Those of bytes are whole numbers below 2**53, hence exact: the
    result does not depend on the blocks. Floats are first moved by the mean of the first block.

    Parameters
    ----------
    shape: (C, H, W).
    device: where the products are summed up; where it has no float64 the CPU takes over.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self.channels, self.size = shape[0], math.prod(shape)
        known = torch.device(device).type == "cuda"
        self.device = torch.device(device if known else "cpu")
        self.number, self.is_bytes = 0, True
        self.origin, self.sums = self._zeros(self.size), self._zeros(self.size)
        self.products = self._zeros(self.size, self.size)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def add(
        self,
        images: Array,
        places: Array | None = None,
        update: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Take images [n, C, H, W], uint8 or float32, or only those at the `places` [m].

        `update` is called with the number of images done.
        """
        places = np.arange(len(images)) if places is None else places
        step = max(1, BLOCK_NUMBERS // self.size)
        for start in range(0, len(places), step):
            self._add(images[places[start : start + step]])
            update(min(start + step, len(places)))

    def _add(self, images: Array) -> None:
        block = torch.from_numpy(images).to(self.device).double().flatten(1)
        if not self.number and images.dtype != np.uint8:
            self.is_bytes, self.origin = False, block.mean(dim=0)
        block -= self.origin
        self.number += len(block)
        self.sums += block.sum(dim=0)
        self.products.addmm_(block.T, block)

    def normalised(self, normalise: Normalise) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] in float64, in the space that `normalise` leads to."""
        mean = self.sums / self.number
        covariance = (self.products - torch.outer(self.sums, mean)) / max(1, self.number - 1)
        scale, shift = (
            each.flatten().repeat_interleave(self.size // self.channels).to(self.device)
            for each in normalise.affine(self.is_bytes)
        )
        return (mean + self.origin) * scale + shift, covariance * scale * scale[:, None]


@dataclasses.dataclass(frozen=True, eq=False)  # eq: comparing tensors gives tensors, not a bool
class Whitening:
    """The map and its inverse, for normalised images [n, C, H, W].

    Attributes
    ----------
    matrix, inverse: [D, D], symmetric.
    mean: [D].
    """

    matrix: Tensor
    inverse: Tensor
    mean: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Whiten: (x - mean) matrix."""
        return ((images.flatten(1) - self.mean) @ self.matrix).view(images.shape)

    def undo(self, whitened: Tensor) -> Tensor:
        """Return to normalised images: z inverse + mean."""
        return torch.addmm(self.mean, whitened.flatten(1), self.inverse).view(whitened.shape)

    def to(self, *how: Any) -> Whitening:
        """Move all three, as `Tensor.to`."""
        return Whitening(self.matrix.to(*how), self.inverse.to(*how), self.mean.to(*how))

    def tensors(self) -> dict[str, Tensor]:
        """What an artifact stores, by name: float32 on the CPU."""
        stored = self.to("cpu", torch.float32)
        names = (field.name for field in dataclasses.fields(self))
        return {f"whiten.{name}": getattr(stored, name).contiguous() for name in names}


def fit(mean: Tensor, covariance: Tensor, eps: float) -> Whitening:
    """Work out the map from the mean [D] and the covariance [D, D] of normalised images.

    `eps` is added to every eigenvalue: directions of less variance than that are hardly amplified.
    """
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0) + eps).sqrt()  # rounding may leave a variance just below zero
    return Whitening((vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T, mean)


class Whiten:
    """Turns stored pixels [n, C, H, W] into whitened float32: normalise, then one matrix product.

    It is applied to every batch as it is read, so that resident bytes stay bytes.
    """

    def __init__(self, normalise: Normalise, whitening: Whitening) -> None:
        self.normalise, self.whitening = normalise, whitening.to("cpu", torch.float32)
        self._moved: dict[torch.device, Whitening] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Whiten uint8 or float pixels; the input is left as it is."""
        return self._on(pixels.device).apply(self.normalise(pixels))

    def inverse(self, inputs: Tensor) -> Tensor:
        """Turn inputs [n, C, H, W] back into [0, 1], or the units of a float source."""
        return self.normalise.inverse(self._on(inputs.device).undo(inputs))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tensors that may be on a device."""
        return {"normalise": self.normalise, "whitening": self.whitening}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _on(self, device: torch.device) -> Whitening:
        if device not in self._moved:
            self._moved[device] = self.whitening.to(device)
        return self._moved[device]


def is_whitened(info: DataInfo) -> bool:
    """True when inputs are whitened images."""
    return bool(info.normalisation.get("whiten", "none") != "none")


def of_info(info: DataInfo) -> Whitening | None:
    """Rebuild the map from what an artifact stores; None for a set that is not whitened."""
    if not is_whitened(info):
        return None
    names = [f"whiten.{field.name}" for field in dataclasses.fields(Whitening)]
    missing = [name for name in names if name not in info.tensors]
    if missing:
        raise UserError(
            "this set is whitened, but what undoes it was not stored with it",
            got=sorted(info.tensors),
            expected=", ".join(names),
        )
    return Whitening(*(info.tensors[name] for name in names))
