"""Token embeddings where no pretrained model gives them: one table, fixed for all learners.

Real and synthetic items must live in the same space at every net that a method draws. An embedding
layer that is drawn and trained with each net would give every net a space of its own, in which the
synthetic vectors mean nothing. So one table is made from the training texts, kept with the data,
and no learner changes it. The published methods do the same with GloVe vectors (Sucholutsky &
Schonlau 2019; Li & Li 2021); these are made of the training texts alone.

Shape suffixes: N texts, L tokens of the longest, V tokens of the vocabulary, h numbers per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.modalities.tables.arrays import Array
from mmdd.rng import generator

WINDOW = 5
SMOOTHING = 0.75


def random_table(size: int, hidden: int) -> Tensor:
    """[V, h] standard normal numbers, the same at every call."""
    return torch.randn(size, hidden, generator=generator(0, "text/table"))


def ppmi_table(ids: Array, lengths: Array, size: int, hidden: int) -> Tensor:
    """[V, h] the left singular vectors of the tokens' PPMI matrix, times the roots of its values.

    PPMI(w, c) = max(0, log(p(w, c) / (p(w) p_a(c)))), p_a(c) being proportional to p(c)^0.75, over
    windows of 5 tokens either way (Levy & Goldberg 2014, sections 3-4; Levy et al. 2015 for the
    exponent). Over the running text they are centred and scaled to a mean square of 1; tokens that
    never occur get random vectors of that size.

    Parameters
    ----------
    ids: [N, L] token numbers of the training texts.
    lengths: [N] their numbers of tokens.
    """
    from sklearn.utils.extmath import randomized_svd

    matrix = _ppmi(ids, lengths, size)
    table = random_table(size, hidden).numpy().astype(np.float64)
    shown = ids[np.arange(ids.shape[1]) < lengths[:, None]]
    seen, counts = np.unique(shown, return_counts=True)
    rank = min(hidden, len(seen) - 1)
    if rank >= 1 and matrix.nnz:
        left, values, _ = randomized_svd(matrix, rank, n_iter=4, random_state=0)
        found = np.zeros((len(seen), hidden))
        found[:, :rank] = (left * np.sqrt(values))[seen]
        found -= np.average(found, axis=0, weights=counts)
        square = np.average(np.square(found).mean(axis=1), weights=counts)
        table[seen] = found / max(np.sqrt(square), 1e-12)
    return torch.from_numpy(table).float()


def _ppmi(ids: Array, lengths: Array, size: int) -> Any:
    """The sparse PPMI matrix [V, V]."""
    from scipy import sparse

    shown = np.arange(ids.shape[1]) < lengths[:, None]
    counts = sparse.csr_matrix((size, size))
    for shift in range(1, min(WINDOW, ids.shape[1] - 1) + 1):
        both = shown[:, shift:]
        pairs = (ids[:, :-shift][both], ids[:, shift:][both])
        counts += sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(size, size))
    counts = (counts + counts.T).tocoo()
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**SMOOTHING
    ratio = counts.data * context.sum() / (word[counts.row] * context[counts.col])
    values = np.maximum(np.log(ratio), 0)
    return sparse.csr_matrix((values, (counts.row, counts.col)), shape=(size, size))
