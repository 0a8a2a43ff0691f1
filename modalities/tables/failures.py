"""Items that cannot be read: how many are tolerated, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

from mmdd.errors import UserError

NAMED = 5
HINT = "Repair the set, or allow more with data.max_corrupt"


def why(error: Exception) -> str:
    """One line of why an item cannot be read; PIL and libsndfile name a buffer by its address."""
    kind = type(error).__name__
    if kind == "UnidentifiedImageError":
        return "not an image"
    if kind == "LibsndfileError":
        return str(getattr(error, "error_string", "not an audio file")).strip().rstrip(".")
    return (str(error).strip().splitlines() or [kind])[0]


def allowed(limit: int | float, total: int) -> int:
    """Unreadable items that are tolerated among `total`: a number, or a share of them."""
    return limit if isinstance(limit, int) else int(limit * total)


def require_few(
    failures: Sequence[str], total: int, limit: int | float, what: str, most: int = NAMED
) -> None:
    """Refuse a set with too many unreadable items; `what` they are in the plural.

    Errors: UserError, which names `most` of the failures.
    """
    tolerated = allowed(limit, total)
    if len(failures) > tolerated:
        raise UserError(
            f"{len(failures)} of {total} {what} cannot be read: {shown(failures, most)}",
            expected=f"at most {tolerated}",
            hint=HINT,
        )


def shown(names: Sequence[str], most: int = NAMED) -> str:
    """The first of them, and whether there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def dropped(failures: Sequence[str], what: str, most: int = NAMED) -> list[str]:
    """The sentence that says how many of `what` are left out; none without failures."""
    if not failures:
        return []
    return [f"{len(failures)} {what} dropped: {shown(failures, most)}"]
