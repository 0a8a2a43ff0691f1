"""Learnable tensors and a differentiable decode into what a learner reads.

These know no modality: they work on a tensor or on a dict of fields. `Direct` is here; the others
are in packed.py, basis.py and frequency.py.

Shape suffixes: K start items, M stored items, m of them in a batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

import torch
from torch import Size, Tensor, nn

from mmdd.errors import UserError
from mmdd.trees import Tree, named_leaves, tree_map, tree_take

ROOT = "inputs"


class Representation(nn.Module):
    """Base of all representations.

    `expand` is the number of decoded items per stored item (1 unless items are packed).
    Learnable tensors are parameters of the module; their names (``inputs``, ``inputs.image``)
    are the names that learning rates are given for.
    """

    expand: int = 1
    joint: bool = False
    """True where the stored items form one structure (a graph), decoded as a whole."""
    continuous: bool = False
    """True where the stored items are windows of one series: a budget counts its time steps."""

    @classmethod
    def stored(cls, counts: Tensor, example: Tree, **options: Any) -> Tensor:
        """[G] stored items that a budget of `counts` [G] makes; `UserError` where it makes none."""
        return counts

    @classmethod
    def needs(cls, example: Tree, **options: Any) -> int:
        """How many start items one stored item is made from; `example` is one item [1, ...].

        Raises `UserError` when such items or options do not fit.
        """
        return 1

    @classmethod
    def of_items(
        cls,
        values: Tree,
        *,
        bounds: tuple[Tree, Tree] | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Self:
        """Build from K = M x `needs` items; those of one stored item stand one after another.

        What does not come from the items is drawn from `generator`.
        """
        raise AssertionError("a representation defines of_items")

    @classmethod
    def of_series(
        cls,
        series: Tensor,
        *,
        example: Tree,
        bounds: tuple[Tree, Tree] | None = None,
        **options: Any,
    ) -> Self:
        """Build a continuous one from a real slice [T, C]; `example` is one blank item [1, ...]."""
        raise AssertionError("a continuous representation defines of_series")

    @classmethod
    def of_state(
        cls,
        tensors: dict[str, Tensor],
        *,
        example: Tree,
        bounds: tuple[Tree, Tree] | None = None,
        **options: Any,
    ) -> Self:
        """Rebuild from the entries of a `state_dict`; `example` is one blank item [1, ...]."""
        raise AssertionError("a representation defines of_state")

    def decode(self, index: Tensor | None) -> Tree:
        """Inputs of the stored items `index` [m]; all of them, or the joint whole, for None."""
        raise AssertionError("a representation defines decode")

    def leaves(self) -> dict[str, nn.Parameter]:
        """Learnable tensors by public name."""
        return {name.replace("/", "."): leaf for name, leaf in self.named_parameters()}

    def resample(self, generator: torch.Generator | None, step: int = 0) -> None:
        """Draw what is random in `decode` for step number `step`; None: decode the expected form.

        Called around every comparison, so that nothing of it needs to be check-pointed.
        """

    def settle(self) -> dict[str, Tensor] | None:
        """Stored tensors of the same items in the form in which a finished set is kept.

        None where that is the form in which they were learned. `of_state` reads both.
        """
        return None

    def penalty(self) -> Tensor | None:
        """Scalar that the objective ``penalty`` keeps small; None where there is no such thing."""
        return None

    def constrain_(self) -> None:
        """Bring the leaves back into their valid range after a step."""


class FieldWise(Representation):
    """Base of those that code every field of an item on its own.

    A floating-point field for which `_is_coded` holds is stored in a code; another one is learned
    as it is; fields of other kinds, and those named in `fixed`, are kept as buffers. A field that
    is not coded has one row per decoded item: [M, ...], or [M, expand, ...] when items are packed.

    Tensors are named by the path of their field, ``inputs`` or ``inputs/image``: '.' may not stand
    in a parameter's name.

    Parameters
    ----------
    example: an item [1, ...]: a tensor or a dict of fields. Only shapes and kinds are read.
    fixed: dotted names of fields that stay as they are (masks, positions).
    """

    def __init__(self, example: Tree, *, fixed: Collection[str] = ()) -> None:
        super().__init__()
        self._bounded: list[str] = []
        self._structure = tree_map(lambda leaf: None, example)
        found = fields(example)
        self._fields = tuple(found)
        require_names(fixed, [short_name(field) for field in found], "fixed")
        self._fixed = {
            field
            for field, leaf in found.items()
            if short_name(field) in fixed or not leaf.is_floating_point()
        }
        self._items: dict[str, Size] = {
            field: leaf.shape[1:]
            for field, leaf in found.items()
            if field not in self._fixed and self._is_coded(leaf.shape[1:])
        }

    @classmethod
    def of_items(
        cls,
        values: Tree,
        *,
        bounds: tuple[Tree, Tree] | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Self:
        """Code the items `values` [K, ...]."""
        made = cls(tree_take(values, slice(0, 1)), **options)
        stored: dict[str, Tensor] = {}
        for field, items in fields(values).items():
            coded = field in made._items
            stored.update(made._encode(field, items) if coded else {field: made._as_rows(items)})
        return made._ready(stored, bounds)

    @classmethod
    def of_state(
        cls,
        tensors: dict[str, Tensor],
        *,
        example: Tree,
        bounds: tuple[Tree, Tree] | None = None,
        **options: Any,
    ) -> Self:
        """Rebuild from the entries of a `state_dict`; `UserError` if they are not this one's."""
        return cls(example, **options)._ready(tensors, bounds)

    def _ready(self, stored: dict[str, Tensor], bounds: tuple[Tree, Tree] | None) -> Self:
        """Take the stored tensors in."""
        wanted = self._names()
        if set(stored) != set(wanted):
            raise UserError(
                "the stored tensors do not belong to this representation of these items",
                got=", ".join(sorted(stored)),
                expected=", ".join(sorted(wanted)),
            )
        self._register(stored)
        for field in self._items:
            self._prepare(field)
        if bounds is not None:
            self._bound(*bounds)
        return self

    def _register(self, stored: dict[str, Tensor]) -> None:
        for name, tensor in stored.items():
            value = tensor.detach().clone()
            if value.is_floating_point() and name not in self._fixed:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def _names(self) -> list[str]:
        """Names of everything that is stored."""
        parts = [self._parts(field) if field in self._items else [field] for field in self._fields]
        return [name for part in parts for name in part]

    # -- what a code defines ---------------------------------------------------------------------

    def _is_coded(self, item: Size) -> bool:
        """Whether a learned field of item shape `item` is coded."""
        return False

    def _parts(self, field: str) -> list[str]:
        """Names of the tensors that a coded field is stored in."""
        return [field]

    def _prepare(self, field: str) -> None:
        """Check the shapes of the stored tensors (`UserError`) and derive what decoding needs."""

    def _encode(self, field: str, items: Tensor) -> dict[str, Tensor]:
        """Stored tensors of a field, from start items [K, ...]."""
        raise AssertionError("a code defines _encode")

    def _decode(self, field: str, index: Tensor | None) -> Tensor:
        """A coded field of the stored items `index`: [m x expand, ...]."""
        raise AssertionError("a code defines _decode")

    def _correct_(self, field: str, excess: Tensor) -> None:
        """Change the stored tensors so that the decoded field changes by about `excess`."""
        raise AssertionError("a code defines _correct_")

    def _project_(self, field: str, low: Tensor, high: Tensor) -> None:
        """Move the decoded field towards its range, where it is outside."""
        decoded = self._decode(field, None)
        excess = clamped(decoded, low, high) - decoded
        if bool((excess != 0).any()):
            self._correct_(field, excess)

    # -- what they share -------------------------------------------------------------------------

    def decode(self, index: Tensor | None) -> Tree:
        """Decode every field; the items of stored item 0 come first."""
        return self._fill(self._structure, ROOT, index)

    def _fill(self, structure: Tree, field: str, index: Tensor | None) -> Tree:
        if isinstance(structure, dict):
            return {k: self._fill(sub, f"{field}/{k}", index) for k, sub in structure.items()}
        if field in self._items:
            return self._decode(field, index)
        rows = self._rows(field, index)
        return rows if self.expand == 1 else rows.flatten(0, 1)

    def _rows(self, name: str, index: Tensor | None) -> Tensor:
        stored = getattr(self, name)
        return stored if index is None else stored[index]

    def _as_rows(self, items: Tensor) -> Tensor:
        return items if self.expand == 1 else items.unflatten(0, (-1, self.expand))

    def _bound(self, low: Tree, high: Tree) -> None:
        lows, highs = named_leaves(low, ROOT), named_leaves(high, ROOT)
        for field in self._fields:
            key = ROOT if isinstance(low, Tensor) else field.replace("/", ".")
            if field not in self._fixed and key in lows:
                self._bounded.append(field)
                self.register_buffer(f"low:{field}", lows[key], persistent=False)
                self.register_buffer(f"high:{field}", highs[key], persistent=False)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring the items into the bounds, where they are given."""
        for field in self._bounded:
            low, high = getattr(self, f"low:{field}"), getattr(self, f"high:{field}")
            if field in self._items:
                self._project_(field, low, high)
            else:
                leaf = getattr(self, field)
                leaf.copy_(clamped(leaf, low, high))


class Direct(FieldWise):
    """The synthetic items themselves.

    Parameters
    ----------
    values: a [M, ...] tensor, or a dict of such fields. Floating-point fields are learned.
    fixed: dotted names of fields that stay as they are (masks, positions).
    bounds: (lowest, highest) values, or None: each a tensor that broadcasts against one item, or
        a dict of such tensors for the fields that have bounds.
    """

    def __init__(
        self,
        values: Tree,
        *,
        fixed: Collection[str] = (),
        bounds: tuple[Tree, Tree] | None = None,
    ) -> None:
        super().__init__(values, fixed=fixed)
        self._ready(fields(values), bounds)


def fields(tree: Tree) -> dict[str, Tensor]:
    """Tensors of `tree` by the names that a module may give them: ``inputs``, ``inputs/image``."""
    return {name.replace(".", "/"): leaf for name, leaf in named_leaves(tree, ROOT).items()}


def short_name(field: str) -> str:
    """The name that a user knows: ``image`` for ``inputs/image``, ``inputs`` for a bare tensor."""
    return field.removeprefix(f"{ROOT}/").replace("/", ".")


def part_of(field: str, part: str) -> str:
    """The name of one part of a field's code: ``inputs/bases/image`` for part ``inputs/bases``."""
    return part + field.removeprefix(ROOT)


def require_names(given: Collection[str], known: Collection[str], option: str) -> None:
    """Raise `UserError` when an option names a field that the items lack."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(
            f"{option} names fields that the items do not have",
            got=", ".join(unknown),
            expected=f"some of {', '.join(sorted(known))}",
        )


def require_shape(field: str, stored: Tensor, expected: tuple[int, ...]) -> None:
    """Raise `UserError` unless `stored` is [M, *expected]."""
    if tuple(stored.shape[1:]) != tuple(expected):
        raise UserError(
            f"the stored tensor of field {short_name(field)!r} does not fit the options",
            got=tuple(stored.shape),
            expected=f"any number of rows of shape {tuple(expected)}",
        )


def clamped(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`values` inside tensors of bounds."""
    return torch.minimum(torch.maximum(values, low), high)


def along(values: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply `matrix` [out, in] on one axis of `values`, whose length `in` becomes `out`."""
    if axis == values.ndim - 1:
        return values @ matrix.T
    rest = values.shape[axis + 1 :]
    return (matrix @ values.flatten(axis + 1)).unflatten(-1, rest)
