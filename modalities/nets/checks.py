"""What encoders refuse when they are built."""

from __future__ import annotations

from mmdd.errors import UserError


def require_at_least(option: str, value: float, least: float) -> None:
    """Refuse a number below `least`."""
    if value < least:
        raise UserError(f"{option} is too small", got=value, expected=f"at least {least}")


def require_shared_out(dim: int, heads: int) -> None:
    """Refuse tokens of `dim` numbers that the heads of an attention cannot share out."""
    if dim < 1 or dim % heads:
        raise UserError(
            "dim is shared out among the heads", got=dim, expected=f"a multiple of {heads}"
        )
