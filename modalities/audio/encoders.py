"""Audio encoders by name.

Every encoder is built as ``ENCODERS[name](shape, classes, **options)``, where shape is (1, M, F) of
log-mel spectra or (1, T) of waveforms, and offers ``forward`` (logits [n, classes]), ``features``
([n, D], the classifier's input), ``layers`` (a list of [n, D_l]), ``classifier``, ``spaces`` and
``mixes_items``.

To add one: subclass `AudioEncoder` of `base.py`, see that every parameter belongs to a module with
`reset_parameters`, and add a line below.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mmdd.errors import UserError, unknown_name
from mmdd.modalities.audio.base import AudioEncoder
from mmdd.modalities.audio.convolutional import M5, ConvNet
from mmdd.modalities.audio.sequential import CRNN, Transformer
from mmdd.modalities.nets.chain import outputs_of
from mmdd.modalities.nets.checks import require_at_least


class Linear(AudioEncoder):
    """One linear layer on all numbers of an input."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(math.prod(shape), classes)

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The input itself."""
        return [x]


class MLP(AudioEncoder):
    """`depth` fully connected layers of `width` numbers with ReLU on all numbers of an input."""

    def __init__(
        self, shape: tuple[int, ...], classes: int, *, width: int = 128, depth: int = 2
    ) -> None:
        require_at_least("width", width, 1)
        require_at_least("depth", depth, 1)
        super().__init__(width, classes)
        sizes = [math.prod(shape)] + [width] * (depth - 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.ReLU()) for size in sizes
        )

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Numbers after every layer, [n, width]."""
        return outputs_of(self.blocks, x.flatten(1))


ENCODERS: dict[str, type[AudioEncoder]] = {
    "convnet": ConvNet,
    "m5": M5,
    "crnn": CRNN,
    "transformer": Transformer,
    "mlp": MLP,
    "linear": Linear,
}


def build(
    name: str, shape: tuple[int, ...], classes: int, space: str, options: dict[str, Any]
) -> AudioEncoder:
    """Build the encoder `name`; `UserError` if it is unknown or reads the other space."""
    if name not in ENCODERS:
        raise unknown_name("encoder", name, ENCODERS)
    kind: Any = ENCODERS[name]
    if space not in kind.spaces:
        fitting = ", ".join(known for known, made in ENCODERS.items() if space in made.spaces)
        raise UserError(
            f"the encoder {name!r} reads {' or '.join(kind.spaces)}, and data.space is {space}",
            expected=f"one of {fitting}",
            hint=f"Set learner.encoder to one of these, or data.space={kind.spaces[0]}.",
        )
    made: AudioEncoder = kind(shape, classes, **options)
    return made
