"""What modalities share whose items stay on disk: how many processes read, what is said of it."""

from __future__ import annotations

import os

MOST_WORKERS = 8


def reading_processes(asked: int | None, *, in_memory: bool) -> int:
    """Processes that read: none for arrays, which every process would need a copy of.

    Else as many as `asked`, or one less than there are cores, at most `MOST_WORKERS`.
    """
    if in_memory:
        return 0
    if asked is not None:
        return asked
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) - 1))


def told(what: str, nbytes: int, workers: int, *, in_memory: bool, checked: int, of: int) -> str:
    """Say where `what` stay, who reads them, and how many `of` the training ones were checked."""
    where = "in main memory" if in_memory else "on disk"
    note = f"{what} stay {where} ({nbytes / 2**30:.2f} GiB decoded), read by "
    note += f"{workers} processes" if workers else "this process"
    if checked < of:
        note += f"; mean, std and readability come from {checked} training {what} chosen at random"
    return note
