"""Vectors of images and texts by encoders that stay as they are, computed once and kept.

Without a model both are learned from the training split alone: images by clustered patches, texts
by latent semantic analysis.

Shape suffixes: N images, n of a block, C channels, H height, W width, K filters, P patches of an
image, p numbers of a patch, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.cache import cache_folder
from mmdd.errors import UserError
from mmdd.files import load_tensors, save_tensors
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.text import models
from mmdd.modality import DataInfo

PATCH, STRIDE = 6, 2
SAMPLED = 40_000  # patches that filters are learned from
BLOCK = 64  # images that are encoded at once
CONTRAST, WHITEN = 10 / 255**2, 0.1

log = logging.getLogger("mmdd")


# -- kept ------------------------------------------------------------------------------------------


def kept(key: bytes, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read the tensors of `key` from the cache, or make them and keep them.

    A cache that cannot be read or written costs time, never a result.
    """
    place = cache_folder() / "pairs" / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"
    if place.is_file():
        try:
            return load_tensors(place)[0]
        except UserError as error:
            log.warning("cached features are made anew (%s)", error)
    found = make()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(place, found)
    except OSError as error:
        log.warning("the features are not kept for the next run: %s", error)
    return found


def digest_of(images: Mapping[str, Array], *settings: Any) -> bytes:
    """What features of these images depend on."""
    hasher = hashlib.sha256(repr(settings).encode())
    for role, pixels in images.items():
        hasher.update(repr((role, pixels.shape, pixels.dtype.str)).encode())
        hasher.update(np.ascontiguousarray(pixels).data)
    return hasher.digest()


# -- filters ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Filters:
    """Clusters of whitened patches, and how near each patch is to them (Coates, Lee & Ng 2011).

    A patch is normalised (minus its mean, over its deviation) and whitened; its code is
    max(0, mean of the distances to all centres - distance to this one), their "triangle" encoding;
    the codes are averaged over the four quarters of the image.

    Attributes
    ----------
    mean, whiten: [p] and [p, p].
    centres: [K, p].
    """

    mean: Tensor
    whiten: Tensor
    centres: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """[n, C, H, W] in [0, 1] -> [n, 4 K]."""
        patches = (_patches(images) - self.mean) @ self.whiten
        distances = torch.cdist(patches, self.centres[None].expand(len(patches), -1, -1))
        codes = F.relu(distances.mean(dim=2, keepdim=True) - distances)
        rows = (images.shape[2] - PATCH) // STRIDE + 1
        grid = codes.mT.unflatten(2, (rows, -1))
        return F.adaptive_avg_pool2d(grid, 2).flatten(1)


def _patches(images: Tensor) -> Tensor:
    """[n, P, p] every patch of the images, minus its mean and over its deviation."""
    patches = F.unfold(images, PATCH, stride=STRIDE).mT
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + CONTRAST).sqrt()


def learn_filters(images: Array, count: int) -> Filters:
    """Learn `count` filters from training images [N, C, H, W]; the same ones at every call."""
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(0)
    rows = rng.permutation(len(images))[:400]
    each = max(1, SAMPLED // len(rows))
    found = []
    for row in rows:
        patches = _patches(unit(images[row : row + 1]))[0]
        found.append(patches[rng.permutation(len(patches))[:each]])
    patches = torch.cat(found)
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh((patches - mean).double().T.cov())
    whiten = ((vectors / (values.clamp_min(0) + WHITEN).sqrt()) @ vectors.T).float()
    white = ((patches - mean) @ whiten).numpy()
    clusters = MiniBatchKMeans(min(count, len(white)), n_init=1, batch_size=4096, random_state=0)
    clusters.fit(white)
    return Filters(mean, whiten, torch.from_numpy(clusters.cluster_centers_).float())


def unit(pixels: Array) -> Tensor:
    """Stored pixels as float32; bytes are read as [0, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(pixels))
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()


@dataclasses.dataclass(frozen=True)
class ImageCodes:
    """Codes of filters, reduced to their principal components of equal variance on training.

    The first components, brightness and contrast, would else rule all distances.

    Attributes
    ----------
    mean, axes: [4 K] and [4 K, D].
    """

    filters: Filters
    mean: Tensor
    axes: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] -> [N, D]."""
        return (_in_blocks(self.filters, images) - self.mean) @ self.axes

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact stores, so that new images can be brought into the space."""
        return {**dataclasses.asdict(self.filters), "codes": self.mean, "axes": self.axes}

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor]) -> ImageCodes:
        """Read them back."""
        filters = Filters(found["mean"], found["whiten"], found["centres"])
        return cls(filters, found["codes"], found["axes"])


def _in_blocks(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([encode(part) for part in images.split(BLOCK)])


def learn_codes(images: Array, count: int, width: int) -> tuple[ImageCodes, Tensor]:
    """Learn filters and components of training images; also their own vectors [N, D]."""
    filters = learn_filters(images, count)
    codes = torch.cat(
        [filters(unit(images[at : at + BLOCK])) for at in range(0, len(images), BLOCK)]
    )
    mean, axes = whitened_components(codes, width)
    return ImageCodes(filters, mean, axes), (codes - mean) @ axes


def filter_features(
    images: Mapping[str, Array], count: int, width: int, key: bytes
) -> tuple[dict[str, Tensor], ImageCodes]:
    """[N, D] by part, from the cache where it has them, and how they are made."""

    def make() -> dict[str, Tensor]:
        made, train = learn_codes(images["train"], count, width)
        vectors = {
            role: torch.cat(
                [made(unit(part[at : at + BLOCK])) for at in range(0, len(part), BLOCK)]
            )
            for role, part in images.items()
            if role != "train"
        }
        return {f"part {r}": v for r, v in {"train": train, **vectors}.items()} | made.tensors()

    found = kept(key, make)
    vectors = {role: found[f"part {role}"] for role in images}
    return vectors, ImageCodes.of_tensors(found)


def whitened_components(vectors: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and axes [D, width] of principal components of variance 1 over `vectors` [N, D]."""
    wide = vectors.double()
    mean = wide.mean(dim=0)
    _, values, axes = torch.linalg.svd(wide - mean, full_matrices=False)
    rank = max(1, min(width, int((values > 1e-6 * values[:1].clamp_min(1e-12)).sum())))
    axes = axes[:rank]
    # an axis has no sign of its own
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    scale = len(wide) ** 0.5 / values[:rank].clamp_min(1e-12)
    return mean.float(), (axes.T * scale).float()


# -- a model of images -----------------------------------------------------------------------------


class ImageModel:
    """A frozen image encoder of transformers.

    Its vector is what it calls the image's features or its pooled output, or else the mean over all
    positions of its last layer.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.model: nn.Module = models.load_model(name, attention=None).to(device)
        whole: Any = self.model.config
        config: Any = getattr(whole, "vision_config", whole)
        if not hasattr(config, "num_channels"):
            raise UserError(
                f"the model {name!r} is no image encoder",
                got=type(self.model).__name__,
                expected="one that reads pixel_values, e.g. a ViT or CLIP",
            )
        size = getattr(config, "image_size", None) or 224
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.channels = int(config.num_channels)
        self.mean, self.std = _scaling(name, self.channels)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """[n, C, H, W] in [0, 1] -> [n, D] on the CPU."""
        pixels = ((images - self.mean) / self.std).to(self.device)
        encode: Any = getattr(self.model, "get_image_features", self.model)
        found = encode(pixel_values=pixels)
        if not isinstance(found, Tensor):
            pooled = getattr(found, "pooler_output", None)
            found = found.last_hidden_state if pooled is None else pooled
        if found.ndim == 4:
            found = found.mean(dim=(2, 3))
        found = found.mean(dim=1) if found.ndim == 3 else found
        result: Tensor = found.float().cpu()
        return result

    def features(self, images: Mapping[str, Array]) -> dict[str, Tensor]:
        """[N, D] by part, from the cache where it has them."""
        key = digest_of(images, "model", models.digest(self.model), self.mean, self.std)

        def make() -> dict[str, Tensor]:
            return {
                role: torch.cat(
                    [self(unit(pixels[at : at + BLOCK])) for at in range(0, len(pixels), BLOCK)]
                )
                for role, pixels in images.items()
            }

        return kept(key, make)


def _scaling(name: str, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C, 1, 1] of the model's preprocessor; 0.5 where none is stored."""
    from transformers import AutoImageProcessor

    mean = std = None
    try:
        with models.quiet():
            found = AutoImageProcessor.from_pretrained(name)
        mean, std = found.image_mean, found.image_std
    except (OSError, ValueError, ImportError):
        log.info("%s has no preprocessor: pixels are brought to -1..1", name)
    each = [mean or [0.5] * channels, std or [0.5] * channels]
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in each)
    return mean, std


# -- texts -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Semantic:
    """Latent semantic analysis (Deerwester et al. 1990): weighted words on axes of the training texts.

    Words are weighted by 1 + log of their count and by inverse document frequency, reduced by a
    truncated singular value decomposition, and each text is brought to length 1.

    Attributes
    ----------
    words: V of them, sorted.
    weights, axes: [V] and [V, D].
    """  # noqa: E501

    words: list[str]
    weights: Tensor
    axes: Tensor

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[C, D]; a text of which no word is known gives zeros."""
        counter = _counter(vocabulary=self.words)
        counter.idf_ = self.weights.double().numpy()
        counts = counter.transform(texts)
        return F.normalize(torch.from_numpy(counts @ self.axes.double().numpy()), dim=1).float()

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact stores, so that new texts can be brought into the space."""
        stored = torch.frombuffer(bytearray("\n".join(self.words).encode()), dtype=torch.uint8)
        return {"words": stored, "weights": self.weights, "axes": self.axes}

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor]) -> Semantic:
        """Read them back."""
        words = found["words"].numpy().tobytes().decode().split("\n")
        return cls(words, found["weights"], found["axes"])


def _counter(vocabulary: Sequence[str] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", vocabulary=vocabulary)


def learn_semantic(texts: Sequence[str], width: int) -> Semantic:
    """Learn the axes of training texts; the same ones at every call.

    Errors: UserError when the texts hold no words.
    """
    from sklearn.decomposition import TruncatedSVD

    counter = _counter()
    try:
        counts = counter.fit_transform(texts)
    except ValueError as error:
        raise UserError("the training texts hold no words", got=str(error)) from error
    rank = max(1, min(width, min(counts.shape) - 1))
    reduce = TruncatedSVD(rank, n_iter=7, random_state=0).fit(counts)
    axes = torch.from_numpy(np.ascontiguousarray(reduce.components_.T)).float()
    words = [str(word) for word in counter.get_feature_names_out()]
    return Semantic(words, torch.from_numpy(counter.idf_).float(), axes)


def encoder_of(name: str, info: DataInfo) -> ImageCodes | Semantic | None:
    """How vectors of the field `name` are made of new images or texts; None without own features.

    Its results are in the units of the source: `Standardise` by ``info.tensors[name + ".mean"]``
    and the field's ``std`` brings them to what learners read. A model's features are the model's.
    """
    prefix = f"{name}.encoder."
    found = {k.removeprefix(prefix): v for k, v in info.tensors.items() if k.startswith(prefix)}
    if not found:
        return None
    return (Semantic if "words" in found else ImageCodes).of_tensors(found)
