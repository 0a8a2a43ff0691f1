"""Open text sets: find, split, tokenise or embed, and keep on a device.

Shape suffixes: N items of a part, L tokens, h numbers per token, V tokens, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.parts import Parts, keep_trained, make_parts
from mmdd.modalities.tables.sets import ClassesOrSets, LabelSets, has_label_sets, set_targets
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.text import models, table
from mmdd.modalities.text.embed import SentenceEncoder, misfit
from mmdd.modalities.text.neighbours import TextsInMemory, remember
from mmdd.modalities.text.options import TextData
from mmdd.modalities.text.raw import RawTexts
from mmdd.modalities.text.space import Lookup, Standardise
from mmdd.modalities.text.texts import Fields, Texts
from mmdd.modalities.text.tokenise import (
    OwnTokeniser,
    SentencePiece,
    Tokeniser,
    Tokens,
    choose_length,
    notes_of,
    require_known,
    tokenise,
    train,
)
from mmdd.modality import DataInfo, Splits

ROLES = ("train", "validation", "test")
SHOWN_FIELDS = " | "  # between the fields of a text that is shown


@dataclasses.dataclass
class Opening:
    """A set on its way from parts to data.

    Attributes
    ----------
    texts: fields of every item by part; empty lists where there are only vectors.
    vectors: [N, D] by part, for ready vectors.
    """

    parts: Parts[Texts]
    names: tuple[str, ...]
    notes: list[str]
    texts: dict[str, list[Fields]] = dataclasses.field(default_factory=dict)
    vectors: dict[str, Array] = dataclasses.field(default_factory=dict)

    def words(self, role: str) -> list[str]:
        """Texts as a person reads them."""
        return [SHOWN_FIELDS.join(fields) for fields in self.texts.get(role, [])]


@dataclasses.dataclass(frozen=True)
class Aims:
    """What is to be predicted, part by part.

    Attributes
    ----------
    targets: [N] classes, or [N, C] bools where a text has any number of labels.
    groups: [N] int64.
    names: of the groups.
    facts: what ``DataInfo.normalisation`` tells of them.
    """

    task: str
    targets: Mapping[str, Tensor]
    groups: Mapping[str, Tensor]
    names: tuple[str, ...]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, opening: Opening) -> Aims:
        """Take the parts' classes, or their sets of labels."""
        if has_label_sets(opening.parts):
            sets = set_targets(opening.parts, opening.notes)
            facts = {"labels": len(sets.labels)}
            return cls("multi-label", sets.targets, sets.groups, sets.names, facts)
        codes = {role: torch.from_numpy(part.codes) for role, part in opening.parts.items()}
        return cls("classification", codes, codes, opening.names, {})


@dataclasses.dataclass(frozen=True)
class Read:
    """Parts as stored on the device, and the space they are in.

    Attributes
    ----------
    values: what `prepare` reads, by part.
    shape: (L, h) or (D,).
    facts: ``DataInfo.normalisation``.
    tensors: ``DataInfo.tensors``.
    key: what the space is made from (and the items, where these are computed), for the fingerprint.
    """

    values: Mapping[str, Any]
    prepare: Any
    shape: tuple[int, ...]
    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    key: bytes


def open_text(source: Any, options: TextData, device: torch.device | str = "cpu") -> Splits:
    """Open a set of labelled texts.

    Parameters
    ----------
    source: what `options.source` may be (a Hub name, a local folder or file), or from Python: a
        ``datasets`` Dataset or DatasetDict, a list or torch Dataset of (text, label), a pair
        (texts, labels) or (vectors [N, D], labels), or a dict of these by split. None for
        `options.source`. A text may be a tuple of fields, which are joined.
    options: how to read it.
    device: where batches are delivered. Token space: ``{"values": [n, L, h], "mask": [n, L]}``,
        values zero where the mask is False; vectors: [n, D], standardised.

    Errors
    ------
    UserError, one line, for anything about the source or the options that cannot be used.
    """
    labels = ClassesOrSets(sets=options.task == "multi-label", columns=options.labels or ())
    opened = open_source(source, options, RawTexts(options), labels)
    sets = any(isinstance(split.labels, LabelSets) for split in opened.splits.values())
    parts, names, notes = make_parts(opened, options, "text", fewest=1 if sets else 2)
    opening = _read_items(Opening(parts, names, notes))
    aims = Aims.of(opening)
    space = _space(opening, options)
    device = torch.device(device)
    build = {"tokens": _tokens, "sentence": _sentences, "column": _vectors}[space]
    read = build(opening, options, device)
    digest = _digest(opening, read, aims)
    data: dict[str, TextsInMemory] = {}
    for role in opening.parts:
        data[role] = TextsInMemory(
            read.values[role],
            aims.targets[role],
            aims.groups[role],
            len(aims.names),
            prepare=read.prepare,
            device=device,
        )
        data[role].words = opening.words(role)
    remember(digest, data["train"])
    info = DataInfo(
        modality="text",
        task=aims.task,
        source=opened.name,
        shape=read.shape,
        classes=len(aims.names),
        names=aims.names,
        fingerprint=digest,
        normalisation={**read.facts, **aims.facts},
        columns=dict(opened.columns),
        sizes={role: len(data.get(role, ())) for role in ROLES},
        notes=tuple(opening.notes),
        tensors=read.tensors,
    )
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


def _read_items(opening: Opening) -> Opening:
    """Read texts and vectors of every part; empty texts are dropped where there are no vectors."""
    before, empty = dict(opening.parts), 0
    texts: dict[str, list[Fields | None]] = {}
    for role, part in before.items():
        if part.items.columns:
            texts[role] = part.items.read(part.rows)
        if part.items.vectors is None:
            kept = np.array([fields is not None for fields in texts[role]])
            empty += int((~kept).sum())
            if not kept.any():
                raise UserError(f"every text of split {part.split!r} is empty")
            opening.parts[role] = part.take(kept)
            texts[role] = [fields for fields in texts[role] if fields is not None]
    if empty:
        opening.notes.append(f"{empty} empty texts dropped")
    after = dict(opening.parts)
    if not has_label_sets(after):
        opening.parts, opening.names = keep_trained(after, opening.names, opening.notes, "text")
    for role, part in opening.parts.items():
        kept = np.isin(after[role].rows, part.rows)
        if role in texts:
            opening.texts[role] = [
                fields or ("",) for fields, keep in zip(texts[role], kept, strict=True) if keep
            ]
        if part.items.vectors is not None:
            opening.vectors[role] = part.items.vectors[part.rows]
    return opening


def _space(opening: Opening, options: TextData) -> str:
    """Which space the items are brought to.

    Errors: UserError when the source lacks what the chosen space needs.
    """
    ready = "train" in opening.vectors
    space = options.space
    if space == "auto":
        space = "column" if ready else "tokens" if options.model is None else "sentence"
    if space == "column" and not ready:
        raise UserError("data.space is 'column', but the source has texts and no vectors")
    if space != "column" and (ready or not opening.texts):
        raise UserError(f"data.space is {space!r}, but the source has vectors and no texts")
    return space


# -- (a) token embeddings --------------------------------------------------------------------------


def _tokens(opening: Opening, options: TextData, device: torch.device) -> Read:
    """Numbers on the device; embeddings are looked up at every read."""
    tokeniser = _tokeniser(opening, options)
    found = tokeniser(opening.texts["train"])
    length = choose_length(found, options.length, tokeniser.most)
    tokens = {
        role: tokenise(tokeniser, texts, length, found if role == "train" else None)
        for role, texts in opening.texts.items()
    }
    opening.notes += notes_of(tokens, length)
    values, facts, key = _table(tokens["train"], tokeniser, options)
    require_known(tokens["train"], options.tokenizer or options.model or "sentencepiece")
    tensors = {} if options.model is not None else {"table": values}
    if isinstance(tokeniser, SentencePiece):
        tensors["tokeniser"] = tokeniser.as_tensor()
        key += tokeniser.stored
    typical = int(np.median(tokens["train"].lengths))
    facts |= {"length": length, "typical_length": typical, "tokens": tokeniser.size}
    stored = {
        role: {"ids": torch.from_numpy(part.ids), "lengths": torch.from_numpy(part.lengths)}
        for role, part in tokens.items()
    }
    prepare = Lookup(values.to(device))
    return Read(stored, prepare, (length, values.shape[1]), facts, tensors, key)


def _tokeniser(opening: Opening, options: TextData) -> Tokeniser:
    name = options.tokenizer or options.model
    if name is not None:
        return OwnTokeniser(name)
    made = train(opening.texts["train"], options.vocabulary)
    count = len(opening.texts["train"])
    opening.notes.append(
        f"a sentencepiece model of {made.size} pieces was trained on {count} texts"
    )
    return made


def _table(
    tokens: Tokens, tokeniser: Tokeniser, options: TextData
) -> tuple[Tensor, dict[str, Any], bytes]:
    """The token embeddings [V, h] with a mean square of 1 over the training tokens; facts; key.

    Embeddings of a pretrained encoder are divided by one number, with which the encoder multiplies
    them again: so learning rates mean the same for every encoder.
    """
    facts: dict[str, Any] = {"space": "tokens", "scale": 1.0}
    if options.tokenizer is not None:
        facts["tokenizer"] = options.tokenizer
    if options.model is None:
        facts["table"] = options.table
        key = repr((options.table, options.hidden)).encode()
        if options.table == "random":
            return table.random_table(tokeniser.size, options.hidden), facts, key
        made = table.ppmi_table(tokens.ids, tokens.lengths, tokeniser.size, options.hidden)
        return made, facts, key
    model = models.load_model(options.model)
    values = models.token_embeddings(model, options.model)
    if tokeniser.size > len(values):
        name = options.tokenizer or options.model
        raise misfit(name, tokeniser.size, options.model, len(values))
    shown = np.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
    counts = torch.bincount(torch.from_numpy(tokens.ids[shown]).long(), minlength=len(values))
    square = (values.double().square().mean(dim=1) * counts).sum() / counts.sum()
    scale = float(square.sqrt()) or 1.0
    digest = models.table_digest(values)
    facts |= {"model": options.model, "scale": scale, "table": digest}
    return values / scale, facts, digest.encode()


# -- (b) sentence vectors, (c) ready ones ----------------------------------------------------------


def _sentences(opening: Opening, options: TextData, device: torch.device) -> Read:
    assert options.model is not None, "the options ask for a model"
    encoder = SentenceEncoder(
        options.model, options.pooling, options.unit, options.length, device, options.tokenizer
    )
    tokens = {role: encoder.tokens(texts) for role, texts in opening.texts.items()}
    require_known(tokens["train"], options.tokenizer or options.model)
    opening.notes += notes_of(tokens, encoder.length)
    key = b""
    for role, part in tokens.items():
        opening.vectors[role] = encoder.vectors(part, role)
        key += encoder.fingerprint(part).encode()
    facts = {"space": "sentence", "model": options.model, "pooling": options.pooling}
    return _standardised(opening, facts, device, key)


def _vectors(opening: Opening, options: TextData, device: torch.device) -> Read:
    return _standardised(opening, {"space": "column"}, device)


def _standardised(
    opening: Opening, facts: dict[str, Any], device: torch.device, key: bytes = b""
) -> Read:
    vectors = opening.vectors
    sizes = {role: part.shape[1] for role, part in vectors.items()}
    if len(set(sizes.values())) > 1:
        raise UserError("the splits differ in the length of their vectors", got=sizes)
    prepare = Standardise.of(vectors["train"])
    facts |= {"std": prepare.std, "dtype": str(vectors["train"].dtype)}
    tensors = {"mean": prepare.mean}
    prepare = Standardise(prepare.mean.to(device), prepare.std)
    stored = {role: torch.from_numpy(np.array(part)) for role, part in vectors.items()}
    return Read(stored, prepare, (sizes["train"],), facts, tensors, key)


def _digest(opening: Opening, read: Read, aims: Aims) -> str:
    """Fingerprint of classes, labels, stored values and what the space is made from.

    Vectors that were computed here are told by their texts and encoder: another machine rounds
    otherwise.
    """
    hasher = hashlib.sha256(read.key)
    hasher.update(repr((read.shape, aims.names, read.facts["space"])).encode())
    for role, part in opening.parts.items():
        hasher.update(repr((role, len(part))).encode())
        hasher.update(np.ascontiguousarray(aims.targets[role].numpy()).data)
        if read.facts["space"] == "sentence":
            continue
        stored = read.values[role]
        for leaf in stored.values() if isinstance(stored, dict) else [stored]:
            hasher.update(leaf.contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
