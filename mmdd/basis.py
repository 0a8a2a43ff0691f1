"""Items as linear combinations of shared bases.

Shape suffixes: K = M stored items, m of them in a batch, k bases, D values of an item.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Size, Tensor

from mmdd import rng
from mmdd.errors import UserError
from mmdd.representations import FieldWise, part_of, require_shape
from mmdd.trees import Tree

BASES, CODES = "inputs/bases", "inputs/codes"


class Basis(FieldWise):
    """Item i is ``codes[i] @ bases``: bases are shared by all items, codes are its own.

    Deng & Russakovsky 2022 (LinBa): a linear memory with addresses, here one for every item.
    The leaves are ``inputs.bases`` [k, ...] and ``inputs.codes`` [M, k]; those of field ``image``
    are ``inputs.bases.image`` and ``inputs.codes.image``.

    They start at the truncated singular value decomposition of the start items, which is the best
    approximation by k bases in the sum of squares, and exact from k = rank on. Bases are orthogonal
    and each has the norm of a typical item, so that codes are of order one and a rate of the items
    fits the bases. Plain gradient descent moves the decoded items by rate x (item norm)^2 through
    the codes: give those a rate so much smaller, or use Adam for both.

    Parameters
    ----------
    bases: k. A field with fewer than k values has as many bases as values.
    fixed: dotted names of fields that stay as they are.
    """

    def __init__(self, example: Tree, *, bases: int = 32, fixed: Collection[str] = ()) -> None:
        super().__init__(example, fixed=fixed)
        if bases < 1:
            raise UserError("bases counts the shared bases", got=bases, expected="1 or more")
        self.bases = bases

    def _is_coded(self, item: Size) -> bool:
        return len(item) > 0

    def _parts(self, field: str) -> list[str]:
        return [part_of(field, BASES), part_of(field, CODES)]

    def _prepare(self, field: str) -> None:
        item = self._items[field]
        bases, codes = (getattr(self, name) for name in self._parts(field))
        require_shape(field, bases, item)
        require_shape(field, codes, (min(self.bases, item.numel()),))
        require_shape(field, bases.flatten(1).T, (codes.shape[1],))

    def _encode(self, field: str, items: Tensor) -> dict[str, Tensor]:
        flat = items.flatten(1)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        norm = flat.square().sum(dim=1).mean().sqrt()
        scale = norm if float(norm) > 0 else torch.ones_like(norm)
        directions = principal(flat, min(self.bases, flat.shape[1]))
        bases, codes = self._parts(field)
        return {
            bases: (scale * directions).unflatten(1, items.shape[1:]).to(items.dtype),
            codes: (flat @ directions.T / scale).to(items.dtype),
        }

    def _decode(self, field: str, index: Tensor | None) -> Tensor:
        bases, codes = self._parts(field)
        flat = self._rows(codes, index) @ getattr(self, bases).flatten(1)
        return flat.unflatten(1, self._items[field])

    def _correct_(self, field: str, excess: Tensor) -> None:
        """Least squares: the codes of the items nearest to the clamped ones, bases as they are.

        The outcome is in range as nearly as the span of the bases allows. Items that were in range
        keep their codes.
        """
        bases, codes = (getattr(self, name) for name in self._parts(field))
        flat = bases.flatten(1).double()
        gram = torch.linalg.pinv(flat @ flat.T, hermitian=True)
        codes.add_((excess.flatten(1).double() @ flat.T @ gram).to(codes))


def principal(items: Tensor, count: int) -> Tensor:
    """[count, D] orthonormal directions, those of the largest singular values of [K, D] first.

    They come from the smaller of the two Gram matrices, in double precision. Where there are fewer
    than `count` <= D items, orthogonal directions drawn from a fixed stream follow.
    """
    exact = items.double()
    if len(items) <= items.shape[1]:
        span = leading(exact @ exact.T, count).T @ exact
    else:
        span = leading(exact.T @ exact, count).T
    missing = count - len(span)
    drawn = torch.randn(missing, items.shape[1], generator=rng.generator(0, "basis"))
    span = torch.cat([span, drawn.to(span)])
    # rows of vanishing singular values are rounding errors: this makes them directions again
    return torch.linalg.qr(span.T).Q.T.to(items.dtype)


def leading(gram: Tensor, count: int) -> Tensor:
    """[n, count or n] eigenvectors of [n, n], those of the largest eigenvalues first."""
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :count]
