"""From texts to token numbers: an encoder's own tokenizer, or a sentencepiece model trained here.

Shape suffixes: N texts, L tokens of the longest, V tokens of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.text import models
from mmdd.modalities.text.texts import Fields

SEPARATOR = "<sep>"
MOST_SENTENCES = 200_000
"""Texts that a sentencepiece model is trained on: evenly spread ones of a larger set."""
COVERAGES = (0.9995, 0.98, 0.9, 0.5)
"""Shares of all letters that get a piece of their own, where there are enough pieces."""
COVERED = 0.95
MOST_TOKENS = 128
TOO_MANY_UNKNOWN = 0.5


class Tokeniser(Protocol):
    """What the rest asks of a tokenizer.

    Attributes
    ----------
    size: V.
    unknown: the number of the token for what has no token, or None.
    most: the longest text that the encoder reads, in tokens; None for any.
    """

    size: int
    unknown: int | None
    most: int | None

    def __call__(self, texts: Sequence[Fields], most: int | None = None) -> list[list[int]]:
        """Token numbers of every text, cut to `most` where that is given."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The tokens of some numbers, as a person reads them."""


class OwnTokeniser:
    """A tokenizer of transformers; several fields are joined by its separator token."""

    def __init__(self, name: str) -> None:
        self.tokeniser = models.load_tokenizer(name)
        self.size = len(self.tokeniser)
        self.unknown: int | None = self.tokeniser.unk_token_id
        longest = int(self.tokeniser.model_max_length or 0)
        self.most: int | None = longest if 0 < longest < 2**20 else None  # else it is not known
        self.separator = self.tokeniser.sep_token or self.tokeniser.eos_token or "|"

    def __call__(self, texts: Sequence[Fields], most: int | None = None) -> list[list[int]]:
        """Token numbers with the special tokens, which a cut keeps."""
        joined = [f" {self.separator} ".join(fields) for fields in texts]
        cut = {"truncation": True, "max_length": most} if most else {"truncation": False}
        with models.quiet():
            found = self.tokeniser(joined, padding=False, **cut)
        return list(found["input_ids"])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Tokens, with the marks of their kind for spaces."""
        return [str(token) for token in self.tokeniser.convert_ids_to_tokens(list(ids))]


class SentencePiece:
    """A sentencepiece model (Kudo & Richardson 2018) from its bytes."""

    most: int | None = None

    def __init__(self, stored: bytes) -> None:
        import sentencepiece

        self.stored = stored
        self.model = sentencepiece.SentencePieceProcessor(model_proto=stored)
        self.size = int(self.model.get_piece_size())
        self.unknown: int | None = int(self.model.unk_id())

    def __call__(self, texts: Sequence[Fields], most: int | None = None) -> list[list[int]]:
        """Token numbers without special tokens."""
        found = self.model.encode([f" {SEPARATOR} ".join(fields) for fields in texts])
        return [ids[:most] for ids in found]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Pieces; '▁' stands for a space."""
        return [self.model.id_to_piece(int(number)) for number in ids]

    def as_tensor(self) -> Tensor:
        """The model's bytes, to be stored with the set."""
        return torch.frombuffer(bytearray(self.stored), dtype=torch.uint8)

    @classmethod
    def of_tensor(cls, stored: Tensor) -> SentencePiece:
        """Read the model back."""
        return cls(stored.cpu().numpy().tobytes())


def train(texts: Sequence[Fields], vocabulary: int) -> SentencePiece:
    """Train a unigram model (Kudo 2018) with byte fallback, so that no character is unknown.

    `vocabulary` is the most pieces; few texts give fewer. One thread: the same texts give the
    same model.

    Errors: UserError when the texts hold nothing to learn from.
    """
    step = -(-len(texts) // MOST_SENTENCES)
    lines = [field.replace("\n", " ") for fields in texts[::step] for field in fields if field]
    problem = ""
    for coverage in COVERAGES:
        try:
            return SentencePiece(_trained(lines, vocabulary, coverage))
        except RuntimeError as error:  # more letters than pieces: bytes stand for the rare ones
            problem = problem or str(error).strip().splitlines()[-1].rpartition("] ")[2]
    raise UserError(
        f"no tokenizer can be trained on the {len(texts)} training texts",
        got=problem[:100],
        hint="Give one with data.tokenizer or data.model.",
    )


def _trained(lines: Sequence[str], vocabulary: int, coverage: float) -> bytes:
    import sentencepiece

    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=target,
        model_type="unigram",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=coverage,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=[SEPARATOR],
        max_sentence_length=2**20,
        num_threads=1,
        minloglevel=2,
    )
    return target.getvalue()


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Texts of one part as numbers.

    Attributes
    ----------
    ids: [N, L] int32, 0 beyond a text's end.
    lengths: [N] int32.
    cut: texts that were longer than L.
    unknown: tokens that stand for something unknown.
    """

    ids: Array
    lengths: Array
    cut: int
    unknown: int


def choose_length(found: Sequence[Sequence[int]], given: int | None, most: int | None) -> int:
    """L: `given`, or what `COVERED` of the texts need, at most `MOST_TOKENS`; never above `most`.

    Errors: UserError when `given` is more than the encoder reads.
    """
    if given is not None:
        if most is not None and given > most:
            raise UserError("data.length is more than the encoder reads", got=given,
                            expected=f"at most {most} tokens")  # fmt: skip
        return given
    lengths = np.sort([len(ids) for ids in found])
    needed = int(lengths[int(np.ceil(COVERED * len(lengths))) - 1])
    return max(1, min(needed, MOST_TOKENS, most or MOST_TOKENS))


def tokenise(
    tokeniser: Tokeniser, texts: Sequence[Fields], length: int, found: list[list[int]] | None = None
) -> Tokens:
    """Bring texts to numbers; `found` are their whole token numbers where these are known."""
    found = tokeniser(texts) if found is None else found
    long = [place for place, ids in enumerate(found) if len(ids) > length]
    if long:
        shorter = tokeniser([texts[place] for place in long], length)
        found = list(found)
        for place, ids in zip(long, shorter, strict=True):
            found[place] = ids
    lengths = np.array([len(ids) for ids in found], np.int32)
    numbers = np.zeros((len(found), length), np.int32)
    numbers[np.arange(length) < lengths[:, None]] = [number for row in found for number in row]
    unknown = 0 if tokeniser.unknown is None else sum(r.count(tokeniser.unknown) for r in found)
    return Tokens(numbers, lengths, len(long), unknown)


def require_known(tokens: Tokens, name: str) -> None:
    """Refuse a tokenizer that does not know half of the tokens."""
    total = int(tokens.lengths.sum())
    if tokens.unknown > TOO_MANY_UNKNOWN * total:
        raise UserError(
            f"the tokenizer {name!r} does not know these texts",
            got=f"{tokens.unknown} of {total} tokens unknown",
            hint="Choose another data.model or data.tokenizer; without both, one is trained.",
        )


def notes_of(tokens: dict[str, Tokens], length: int) -> list[str]:
    """Sentences about what was cut and what was not known."""
    notes = []
    cut = sum(part.cut for part in tokens.values())
    total = sum(len(part.lengths) for part in tokens.values())
    if cut:
        notes.append(f"{cut} of {total} texts were cut to {length} tokens")
    unknown = sum(part.unknown for part in tokens.values())
    if unknown:
        count = sum(int(part.lengths.sum()) for part in tokens.values())
        notes.append(f"{unknown} of {count} tokens are unknown to the tokenizer")
    return notes


def stored_model(tensors: Any) -> SentencePiece | None:
    """The sentencepiece model among ``DataInfo.tensors``, or None."""
    return SentencePiece.of_tensor(tensors["tokeniser"]) if "tokeniser" in tensors else None
