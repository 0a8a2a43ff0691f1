"""Series encoders by name.

Every encoder is built as ``ENCODERS[name](spec, **options)`` and offers ``forward``, ``features``
([n, D], the head's input), ``layers`` (a list of [n, D_l]) and ``mixes_items``. Inputs are
[n, C, T], or dicts with ``values`` and a ``mask`` [n, T].

To add one: subclass `SeriesEncoder` of `base.py`, pass it blocks that hand the mask on, and add a
line below and an option model in `encoder_options.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from mmdd.errors import UserError, unknown_name
from mmdd.modalities.timeseries.base import PerChannel, Spec
from mmdd.modalities.timeseries.convolutional import FCN, ConvNet, Dual, Inception, ResNet
from mmdd.modalities.timeseries.linear import MLP, DLinear, Linear
from mmdd.modalities.timeseries.recurrent import GRU, LSTM
from mmdd.modalities.timeseries.transformer import PatchTransformer

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "fcn": FCN,
    "resnet": ResNet,
    "inception": Inception,
    "dual": Dual,
    "lstm": LSTM,
    "gru": GRU,
    "dlinear": DLinear,
    "patchtransformer": PatchTransformer,
    "linear": Linear,
    "mlp": MLP,
}


def build(name: str, spec: Spec, *, per_channel: bool = False, **options: Any) -> nn.Module:
    """Build the encoder called `name`; `per_channel` runs it on every channel on its own.

    Raises `UserError` for an unknown name, and for options that do not fit the items or the task.
    """
    if name not in ENCODERS:
        raise unknown_name("encoder", name, ENCODERS)
    if not per_channel or name == "dlinear":
        return ENCODERS[name](spec, **options)
    if not spec.forecasts:
        raise UserError(
            "per_channel is for forecasts: a class belongs to all channels together",
            hint="Set learner.per_channel=false.",
        )
    alone = dataclasses.replace(spec, channels=1, outputs=(1, spec.outputs[1]))
    return PerChannel(ENCODERS[name](alone, **options), spec.channels)
