"""One exception for people: what came, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it as one line, without traceback.

    Parameters
    ----------
    what: what is wrong, e.g. ``"per_class must be at least 1"``.
    got: the offending value, shown by ``repr``.
    expected: what would have been accepted.
    hint: what to type or do next.
    """

    def __init__(
        self, what: str, *, got: Any = None, expected: str | None = None, hint: str | None = None
    ) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got!r}")
        if expected:
            parts.append(f"expected {expected}")
        line = "; ".join(parts)
        super().__init__(f"{line}. {hint}" if hint else line)


class NonFiniteError(RuntimeError):
    """The run met a NaN or an infinity; the last good state is kept on disk."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown_name(kind: str, name: Any, names: Iterable[str]) -> UserError:
    """Build the error for a name that no dictionary lists, with the nearest suggestion."""
    known = sorted(names)
    close = nearest(name, known)
    hint = f"Did you mean {close!r}?" if close else None
    return UserError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(known)}", hint=hint)
