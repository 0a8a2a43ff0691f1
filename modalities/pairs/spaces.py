"""The space of each field: how its values are stored, and what learners read of them.

Shape suffixes: N items of a part, C values, L tokens, h numbers per token, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.images.normalise import Moments, Normalise
from mmdd.modalities.pairs import features
from mmdd.modalities.pairs.options import PairData
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.text import table
from mmdd.modalities.text.embed import SentenceEncoder
from mmdd.modalities.text.space import Lookup, Standardise
from mmdd.modalities.text.tokenise import choose_length, notes_of, require_known, tokenise, train
from mmdd.trees import Tree, tree_leaves

Kind = str
"""``"vectors"``, ``"pixels"`` or ``"tokens"``: what the items of a field are."""


@dataclasses.dataclass(frozen=True)
class Space:
    """One field in the form that is kept on the device.

    Attributes
    ----------
    values: as stored, by part.
    prepare: stored values -> learner inputs.
    shape: of one item: (D,), (C, H, W) or (L, h).
    facts: plain JSON values for ``DataInfo.normalisation``, ``kind`` among them.
    tensors: for ``DataInfo.tensors``.
    key: digest of the stored values, or of what they are computed from.
    """

    values: Mapping[str, Tree]
    prepare: Callable[[Tree], Tree]
    shape: tuple[int, ...]
    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    key: bytes


def of_vectors(
    vectors: Mapping[str, Array],
    made: str,
    device: torch.device,
    key: bytes | None = None,
    encoder: features.ImageCodes | features.Semantic | None = None,
) -> Space:
    """Vectors [C, D], standardised by the training part; `made` says by what they were made.

    What an `encoder` that was learned here consists of is stored with the space.

    Errors: UserError when the parts differ in length.
    """
    sizes = {role: part.shape[1] for role, part in vectors.items()}
    if len(set(sizes.values())) > 1:
        raise UserError("the splits differ in the length of their vectors", got=sizes)
    measured = Standardise.of(vectors["train"])
    values = {role: torch.from_numpy(np.array(part)) for role, part in vectors.items()}
    facts = {"kind": "vectors", "made": made, "std": measured.std}
    prepare = Standardise(measured.mean.to(device), measured.std)
    tensors = {"mean": measured.mean}
    if encoder is not None:
        tensors |= {f"encoder.{name}": value for name, value in encoder.tensors().items()}
    key = _digest(values) if key is None else key
    return Space(values, prepare, (sizes["train"],), facts, tensors, key)


def of_pixels(images: Mapping[str, Array]) -> Space:
    """Pixels [N, C, H, W], normalised by the mean and deviation of the training part."""
    moments = Moments(images["train"].shape[1])
    moments.add(images["train"])
    mean, std, (low, high) = moments.result()
    values = {role: torch.from_numpy(part) for role, part in images.items()}
    facts = {"kind": "pixels", "mean": mean, "std": std, "range": [low, high]}
    shape = tuple(int(side) for side in images["train"].shape[1:])
    return Space(values, Normalise(mean, std), shape, facts, {}, _digest(values))


def of_images(
    images: Mapping[str, Array], model: features.ImageModel | None, options: PairData,
    device: torch.device,
) -> Space:  # fmt: skip
    """Decoded images as pixels, or as features of a frozen encoder."""
    if options.image_space == "pixels":
        return of_pixels(images)
    settings = (options.filters, options.image_width, None if model is None else model.name)
    key, encoder = features.digest_of(images, settings), None
    if model is not None:
        found, made = model.features(images), f"model {model.name}"
    else:
        made = f"{options.filters} filters of training patches"
        found, encoder = features.filter_features(images, options.filters, options.image_width, key)
    vectors = {role: part.numpy() for role, part in found.items()}
    # told by the pixels: another machine rounds features otherwise
    return of_vectors(vectors, made, device, key, encoder)


def of_texts(
    texts: Mapping[str, list[str]], options: PairData, device: torch.device, notes: list[str]
) -> Space:
    """Texts as token embeddings, or as vectors of a frozen encoder.

    What was cut or not known is added to `notes`.
    """
    if options.text_space == "tokens":
        return _of_tokens(texts, options, device, notes)
    key = hashlib.sha256(
        repr((dict(texts), options.text_width, options.text_model)).encode()
    ).digest()
    if options.text_model is None:
        made = features.learn_semantic(texts["train"], options.text_width)
        vectors = {role: made(part).numpy() for role, part in texts.items()}
        unknown = sum(int((np.abs(part).max(axis=1) == 0).sum()) for part in vectors.values())
        if unknown:
            notes.append(f"{unknown} texts have no word of the training texts")
        return of_vectors(vectors, "latent semantic analysis", device, key, made)
    encoder = SentenceEncoder(options.text_model, "mean", True, options.length, device)
    tokens = {role: encoder.tokens([(line,) for line in part]) for role, part in texts.items()}
    require_known(tokens["train"], options.text_model)
    notes += notes_of(tokens, encoder.length)
    vectors = {role: encoder.vectors(part, role) for role, part in tokens.items()}
    return of_vectors(vectors, f"model {options.text_model}", device, key)


def _of_tokens(
    texts: Mapping[str, list[str]], options: PairData, device: torch.device, notes: list[str]
) -> Space:
    """Numbers of a sentencepiece model's pieces; embeddings are looked up at every read."""
    lines = {role: [(line,) for line in part] for role, part in texts.items()}
    tokeniser = train(lines["train"], options.vocabulary)
    notes.append(
        f"a sentencepiece model of {tokeniser.size} pieces was trained on {len(lines['train'])}"
        " texts"
    )
    found = tokeniser(lines["train"])
    length = choose_length(found, options.length, None)
    tokens = {role: tokenise(tokeniser, part, length) for role, part in lines.items()}
    notes += notes_of(tokens, length)
    first = tokens["train"]
    embeddings = table.ppmi_table(first.ids, first.lengths, tokeniser.size, options.hidden)
    values = {
        role: {"ids": torch.from_numpy(part.ids), "lengths": torch.from_numpy(part.lengths)}
        for role, part in tokens.items()
    }
    facts = {"kind": "tokens", "typical_length": int(np.median(first.lengths))}
    tensors = {"table": embeddings, "tokeniser": tokeniser.as_tensor()}
    shape = (length, options.hidden)
    return Space(values, Lookup(embeddings.to(device)), shape, facts, tensors, _digest(values))


def _digest(values: Mapping[str, Tree]) -> bytes:
    hasher = hashlib.sha256()
    for role, part in values.items():
        for leaf in tree_leaves(part):
            hasher.update(repr((role, tuple(leaf.shape), str(leaf.dtype))).encode())
            hasher.update(leaf.contiguous().view(torch.uint8).numpy().data)
    return hasher.digest()
