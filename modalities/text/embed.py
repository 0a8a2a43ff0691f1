"""Sentence vectors of a frozen encoder: computed once, in batches of like lengths, and kept.

Shape suffixes: N texts, n texts of a batch, L tokens, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from mmdd.cache import cache_folder
from mmdd.errors import UserError
from mmdd.files import write_atomic
from mmdd.modalities.nets.pooling import masked_mean
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.text import models
from mmdd.modalities.text.texts import Fields
from mmdd.modalities.text.tokenise import OwnTokeniser, Tokens, tokenise
from mmdd.progress import for_terminal

BATCH_TOKENS = 1024
"""Tokens of a batch, padding included: long texts go in small batches. So many stay in a
processor's cache (4,096 take 5 to 15% longer there); other devices take `DEVICE_TIMES` as many."""
DEVICE_TIMES = 8
MOST_TEXTS = 256
MANY = 2000  # texts whose embedding deserves a bar

log = logging.getLogger("mmdd")


@dataclasses.dataclass
class SentenceEncoder:
    """A frozen encoder of transformers with its tokenizer.

    Parameters
    ----------
    name: folder or Hub name.
    pooling: "mean" of the last layer over the tokens, or its first token ("cls").
    unit: bring the vectors to length 1.
    most: longest text in tokens; by default what the encoder reads, at most 512.
    """

    name: str
    pooling: str
    unit: bool
    most: int | None
    device: torch.device
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        self.tokeniser = OwnTokeniser(self.tokenizer or self.name)
        self.model: nn.Module = models.load_model(self.name, attention=None).to(self.device)
        table = models.input_embeddings(self.model)
        if table is not None and self.tokeniser.size > len(table):
            raise misfit(self.tokenizer or self.name, self.tokeniser.size, self.name, len(table))
        known = min(self.tokeniser.most or 512, 512)
        self.length = known if self.most is None else min(self.most, self.tokeniser.most or 2**20)
        self.key = models.digest(self.model)

    def tokens(self, texts: Sequence[Fields]) -> Tokens:
        """Token numbers of the texts, as long as the longest of them and the encoder allow."""
        found = self.tokeniser(texts)
        longest = max(len(ids) for ids in found)
        return tokenise(self.tokeniser, texts, min(longest, self.length), found)

    def fingerprint(self, tokens: Tokens) -> str:
        """Digest of everything that the vectors depend on, but the machine's rounding."""
        settings = (self.key, self.pooling, self.unit, tokens.ids.shape)
        hasher = hashlib.sha256(repr(settings).encode())
        hasher.update(np.ascontiguousarray(tokens.ids).data)
        hasher.update(np.ascontiguousarray(tokens.lengths).data)
        return hasher.hexdigest()

    def vectors(self, tokens: Tokens, role: str) -> Array:
        """[N, D] float32 vectors of the texts, from the cache where it has them."""
        place = cache_folder() / "text" / f"{self.fingerprint(tokens)}.arrow"
        found, count = _read(place), len(tokens.lengths)
        if found is not None and len(found) == count:
            return found
        quiet = count < MANY or not sys.stderr.isatty()
        with for_terminal(quiet).task(f"embedding {role} texts", count) as update:
            made = self.embed(tokens, update)
        _write(place, made)
        return made

    def embed(self, tokens: Tokens, update: Callable[[int], None] = lambda done: None) -> Array:
        """Run the encoder on texts sorted by length; the result is in their own order."""
        out: Array | None = None
        done = 0
        times = 1 if self.device.type == "cpu" else DEVICE_TIMES
        for places in batches(tokens.lengths, times * BATCH_TOKENS):
            found = self._forward(tokens.ids[places], tokens.lengths[places]).cpu().numpy()
            if out is None:
                out = np.empty((len(tokens.lengths), found.shape[1]), np.float32)
            out[places] = found
            done += len(places)
            update(done)
        assert out is not None, "there is a text"
        return out

    @torch.inference_mode()
    def _forward(self, ids: Array, lengths: Array) -> Tensor:
        longest = int(lengths.max())
        mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
        mask = mask.to(self.device)
        given = torch.from_numpy(ids[:, :longest]).long().to(self.device)
        output = self.model(input_ids=given, attention_mask=mask.long())
        hidden = output.last_hidden_state
        found = hidden[:, 0] if self.pooling == "cls" else masked_mean(hidden, mask)
        return nn.functional.normalize(found, dim=1) if self.unit else found


def batches(lengths: Sequence[int] | Array, most_tokens: int | None = None) -> Iterator[list[int]]:
    """Positions in batches of like lengths, the longest first, so that hardly anything is padded.

    A batch holds at most `most_tokens` (`BATCH_TOKENS`), padding included, and `MOST_TEXTS` texts.
    The longest first: what does not fit into memory fails at once.
    """
    most = most_tokens or BATCH_TOKENS
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    start = 0
    while start < len(order):
        size = max(1, min(MOST_TEXTS, most // max(1, int(lengths[order[start]]))))
        yield order[start : start + size]
        start += size


def misfit(tokenizer: str, size: int, model: str, rows: int) -> UserError:
    """Build the error for a tokenizer with more tokens than the encoder has embeddings."""
    return UserError(
        f"the tokenizer {tokenizer!r} does not fit the encoder {model!r}",
        got=f"{size} tokens",
        expected=f"at most {rows}, one for each embedding of the encoder",
        hint="Leave data.tokenizer out, to use the encoder's own.",
    )


def _read(place: Path) -> Array | None:
    """Vectors of the cache; None where there are none, or where the file is damaged."""
    if not place.is_file():
        return None
    try:
        with pa.OSFile(str(place)) as file:
            column = pa.ipc.open_file(file).read_all().column("embedding").combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size).copy()
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        log.warning("the cached vectors %s cannot be read and are made anew (%s)", place, error)
        return None


def _write(place: Path, vectors: Array) -> None:
    """Keep vectors [N, D] as an Arrow file; a full or closed disk only costs the next run time."""
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
    target = io.BytesIO()
    with pa.ipc.new_file(target, table.schema) as writer:
        writer.write_table(table)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, target.getvalue())
    except OSError as error:
        log.warning("the vectors are not kept for the next run: %s", error)
