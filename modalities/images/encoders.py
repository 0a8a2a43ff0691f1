"""Image encoders by name.

Every encoder is built as ``ENCODERS[name](channels, height, width_px, classes, **options)``, sizes
in pixels, and offers ``forward`` (logits [n, classes]), ``features`` ([n, D], the classifier's
input), ``layers`` (a list of [n, D_l]), ``classifier`` and ``mixes_items``.

To add one: subclass `ImageEncoder` of `base.py`, pass it a list of blocks, see that every parameter
belongs to a module with `reset_parameters`, and add a line below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmdd.errors import unknown_name
from mmdd.modalities.images.classic import MLP, VGG11, AlexNet, LeNet
from mmdd.modalities.images.convnet import ConvNet
from mmdd.modalities.images.resnet import ResNet18
from mmdd.modalities.images.vit import ViT
from mmdd.modality import DataInfo

ENCODERS: dict[str, type[nn.Module]] = {
    "convnet": ConvNet,
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "vit": ViT,
}


def build(encoders: Mapping[str, type[nn.Module]], options: Any, info: DataInfo) -> nn.Module:
    """Build the one of the `encoders` that the options name, for items of the set's shape."""
    chosen = options.model_dump()
    name = chosen.pop("encoder")
    if name not in encoders:
        raise unknown_name("encoder", name, encoders)
    return encoders[name](*info.shape, info.classes, **chosen)
