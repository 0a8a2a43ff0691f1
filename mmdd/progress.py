"""What a person sees while work runs: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Update = Callable[..., None]
"""Called as ``update(done, **facts)``, e.g. ``update(120, loss=3.2)``; ``total`` may change."""


class Progress:
    """Silent base. `task` frames one piece of work, `say` prints a sentence once."""

    def say(self, sentence: str) -> None:
        """Tell a person one thing."""

    @contextlib.contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Update]:
        """Frame a piece of work of `total` steps; yields the update function."""
        yield lambda done, total=None, **facts: None


class PlainProgress(Progress):
    """Lines on standard error, at most one every few seconds: for logs and pipes."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds

    def say(self, sentence: str) -> None:
        """Print the sentence."""
        print(sentence, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Update]:
        """Print how far the work is, and the time that is left where that is minutes."""
        started = said = time.monotonic()
        first: int | None = None

        def update(done: int, total: int | None = total, **facts: float) -> None:
            nonlocal said, first
            now = time.monotonic()
            first = done if first is None else first
            if now - said >= self.seconds:
                said = now
                spent, left = now - started, ""
                if total is not None and done > first:
                    # of this session's own pace: work that is resumed has begun with some done
                    minutes = spent * (total - done) / (done - first) / 60
                    left = f", {minutes:.0f} min left" if minutes >= 1 else ""
                self.say(f"{name} {done}/{total} {describe(facts)} {spent:.0f}s{left}")

        yield update
        self.say(f"{name}: {time.monotonic() - started:.1f}s")


class RichProgress(Progress):
    """A bar with time left and the latest facts."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def say(self, sentence: str) -> None:
        """Print the sentence above the bar."""
        self.console.print(sentence, highlight=False, style="dim")

    @contextlib.contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Update]:
        """Show a bar until the work ends."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[facts]}"),
        )
        with Bar(*columns, console=self.console, refresh_per_second=4) as bar:
            handle = bar.add_task(name, total=total, facts="")

            def update(done: int, total: int | None = total, **facts: float) -> None:
                bar.update(handle, completed=done, total=total, facts=describe(facts))

            yield update
            if total is not None:
                bar.update(handle, total=bar.tasks[0].completed or total)


def describe(facts: dict[str, float]) -> str:
    """Short ``name value`` pairs."""
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in facts.items()
    )


def for_terminal(quiet: bool = False) -> Progress:
    """Pick the display that fits: nothing, a bar, or lines."""
    if quiet:
        return Progress()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
