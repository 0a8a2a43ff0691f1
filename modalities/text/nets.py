"""Text encoders that are trained from scratch.

In token space every net multiplies its input by the mask before anything else, so that the
gradient at a masked position is exactly zero, and pools over the shown positions alone.

Shape suffixes: n items, L positions, h numbers per token, W width, D features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.nets import recurrent
from mmdd.modalities.nets.attention import TransformerBlock
from mmdd.modalities.nets.pooling import masked_mean
from mmdd.trees import Tree


class TextEncoder(nn.Module):
    """Blocks and a linear classifier on the last block's features.

    Parameters
    ----------
    shape: of one item, (L, h) for tokens or (D,) for a vector.

    A net that tells where it looks has an `attention_shape` and the method ``attended``.
    """

    attention_shape: tuple[int, int] | None = None
    """Heads H and positions L of ``attended(inputs)["attention"]`` [n, H, L]."""

    def __init__(self, shape: tuple[int, ...], features: int, classes: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.classifier = nn.Linear(features, classes)

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Outputs of every block, each [n, D_l]; the last one is `features(inputs)`."""
        raise AssertionError("an encoder defines layers")

    def features(self, inputs: Tree) -> Tensor:
        """[n, D] input of the classifier."""
        return self.layers(inputs)[-1]

    def forward(self, inputs: Tree) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.classifier(self.features(inputs))
        return logits


def masked(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Values [n, L, h], zero where nothing is shown, and the mask [n, L] bool."""
    values, mask = inputs["values"], inputs["mask"]
    return values * mask.unsqueeze(-1).to(values.dtype), mask


def shown(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`masked`, without the last positions, where no item of the batch shows anything.

    So a net's time grows with the texts and not with what they are padded to.
    """
    end = _end(inputs["mask"])
    return masked({name: inputs[name][:, :end] for name in ("values", "mask")})


def _end(mask: Tensor) -> int:
    """One more than the last position that an item of `mask` [n, L] shows; at least 1.

    L where values cannot be looked at: while code is compiled, and for masks mapped by vmap.
    """
    length = mask.shape[1]
    if torch.compiler.is_compiling():
        return length
    places = torch.arange(1, length + 1, device=mask.device)
    try:
        return max(1, int((places * mask.any(dim=0)).max()))
    except RuntimeError:
        return length


def looked_at(weights: Tensor, mask: Tensor, length: int, *, first: bool = False) -> Tensor:
    """[n, H, length] shares of the positions in what a net makes of an item.

    Where the `first` position alone is read, that is its row: the attention that [CLS] pays
    (Maekawa et al. 2023). Where the shown positions are averaged, it is the mean of their rows,
    by which the values of all positions stand in the average.

    Parameters
    ----------
    weights: [n, H, l, l] attention of each position (rows) to each (columns), l <= `length`:
        positions that no item of the batch shows are left out, and get none.
    mask: [n, l].
    """
    if first:
        found = weights[:, :, 0]
    else:
        rows = mask[:, None, :, None].to(weights.dtype)
        found = (weights * rows).sum(dim=2) / rows.sum(dim=2).clamp_min(1)
    return F.pad(found, (0, length - found.shape[-1]))


def pooled(inputs: Tree) -> Tensor:
    """[n, D] a vector as it is, or the mean of token embeddings."""
    if isinstance(inputs, dict):
        values, mask = shown(inputs)
        return masked_mean(values, mask)
    return inputs


def require_tokens(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(L, h), or a `UserError` where items are single vectors."""
    if len(shape) != 2:
        raise UserError(
            f"the encoder {name!r} reads tokens, and the data are vectors",
            got=f"{shape[0]} numbers per text",
            expected="encoder mlp or linear",
            hint="Or set data.space=tokens, where the source has texts.",
        )
    return shape[0], shape[1]


class MLP(TextEncoder):
    """`depth` linear layers with ReLU on the vector, or on the mean of the token embeddings."""

    def __init__(
        self, shape: tuple[int, ...], classes: int, *, width: int = 128, depth: int = 1
    ) -> None:
        super().__init__(shape, width, classes)
        sizes = [shape[-1], *[width] * depth]
        self.blocks = nn.ModuleList(
            nn.Linear(size, after) for size, after in itertools.pairwise(sizes)
        )

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Output of every layer."""
        found, x = [], pooled(inputs)
        for block in self.blocks:
            x = F.relu(block(x))
            found.append(x)
        return found


class Linear(TextEncoder):
    """A linear classifier; its features are its inputs."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(shape, shape[-1], classes)

    def layers(self, inputs: Tree) -> list[Tensor]:
        """The vector, or the mean of the token embeddings."""
        return [pooled(inputs)]


class TextCNN(TextEncoder):
    """Convolutions of several widths over the tokens, ReLU, and the largest value of each (Kim 2014).

    Texts are padded with zeros, so that each kernel has one window per position; windows that are
    centred beyond a text's end do not count.
    """  # noqa: E501

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 128,
        kernels: Sequence[int] = (2, 3),
    ) -> None:
        super().__init__(shape, width * len(kernels), classes)
        _, hidden = require_tokens("textcnn", shape)
        self.kernels = tuple(kernels)
        self.blocks = nn.ModuleList(nn.Conv1d(hidden, width, kernel) for kernel in kernels)

    def layers(self, inputs: Tree) -> list[Tensor]:
        """The largest values of all filters."""
        values, mask = shown(inputs)
        x, counted = values.mT, mask.unsqueeze(1)
        found = []
        for block, size in zip(self.blocks, self.kernels, strict=True):
            maps = F.relu(block(F.pad(x, ((size - 1) // 2, size // 2))))
            # ReLU's values are not negative: zero is the lowest
            found.append((maps * counted.to(maps.dtype)).amax(dim=2))
        return [torch.cat(found, dim=1)]


class GRU(TextEncoder):
    """A gated recurrent net (Cho et al. 2014), both ways, and the mean of its states.

    A masked position leaves the state as it is, so that reading backwards starts at a text's last
    token.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 64,
        bidirectional: bool = True,
    ) -> None:
        ways = 2 if bidirectional else 1
        super().__init__(shape, ways * width, classes)
        _, hidden = require_tokens("gru", shape)
        self.ways = nn.ModuleList(recurrent.GRU(hidden, width) for _ in range(ways))

    def layers(self, inputs: Tree) -> list[Tensor]:
        """The mean of the states of both ways."""
        values, mask = shown(inputs)
        means = [
            masked_mean(read(values, mask, backwards=bool(way)), mask)
            for way, read in enumerate(self.ways)
        ]
        return [torch.cat(means, dim=1)]


class Transformer(TextEncoder):
    """A small pre-norm transformer with sine positions (Vaswani et al. 2017)."""

    positions: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__(shape, width, classes)
        length, hidden = require_tokens("transformer", shape)
        self.stem = nn.Linear(hidden, width)
        inner = round(width * mlp_ratio)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sines(length, width), persistent=False)
        self.attention_shape = (heads, length)

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Means over the positions after every block; the last one is normalised first."""
        return self._read(inputs)[0]

    def attended(self, inputs: Tree) -> dict[str, Tensor]:
        """``logits``, and the last block's ``attention`` [n, H, L]; see `looked_at`."""
        layers, weights = self._read(inputs)
        mask = shown(inputs)[1]
        attention = looked_at(weights, mask, inputs["mask"].shape[1])
        return {"logits": self.classifier(layers[-1]), "attention": attention}

    def _read(self, inputs: Tree) -> tuple[list[Tensor], Tensor]:
        """`layers`, and the attention [n, H, L, L] of the last block."""
        values, mask = shown(inputs)
        x = self.stem(values) + self.positions[: values.shape[1]].to(values.dtype)
        found = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, TransformerBlock)
            x, weights = block.attended(x, mask)
            last = number == len(self.blocks) - 1
            found.append(masked_mean(self.norm(x) if last else x, mask))
        return found, weights


def sines(length: int, width: int) -> Tensor:
    """[L, W] sines and cosines of the positions, wave lengths from 2 pi to 10000 x 2 pi."""
    steps = torch.arange(length)[:, None] * 1e-4 ** (torch.arange(0, width, 2) / width)
    return torch.stack([steps.sin(), steps.cos()], dim=2).flatten(1)[:, :width]
