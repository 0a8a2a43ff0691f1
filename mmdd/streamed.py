"""A set that stays on disk: items are read and decoded by worker processes, ahead of their use.

Shape suffixes: N items of the set, n items of a batch.
"""

from __future__ import annotations

import collections
import io
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.real import RealData, identity
from mmdd.trees import Tree, tree_cat, tree_map

Reader = Callable[[list[int]], Tree]
"""Turns row numbers into a tree of CPU tensors [n, ...], each item by itself: cutting the rows into
chunks must not change an item. It is pickled once into every worker."""

SMALLEST_CHUNK = 8  # below this, handing out the work costs more than the work
BATCHES_AHEAD = 4


class StreamedData(RealData):
    """A set whose items are read when they are asked for.

    The same indices give the same tensors whatever the number of workers.

    Parameters
    ----------
    reader: reads rows; see `Reader`. A `WorkerPool` shares the reader and processes of other sets.
    targets, groups, num_groups: as for `RealData`; item i has ``targets[i]`` and ``groups[i]``.
    prepare: turns what was read, on the device, into learner inputs (cast and normalise).
    workers: reading processes; 0 reads in this process. Ignored when a `WorkerPool` is given.
    rows: [N] int64 the row that `reader` is asked for to get item i; None for row i.

    Errors
    ------
    What the reader raises is raised again here. A worker that dies (out of memory, killed) is a
    `UserError`; the next read starts new workers.
    """

    def __init__(
        self,
        reader: Reader | WorkerPool,
        targets: Tensor | None,
        groups: Tensor,
        num_groups: int,
        *,
        prepare: Callable[[Tree], Tree] = identity,
        workers: int = 0,
        device: torch.device | str = "cpu",
        rows: Tensor | None = None,
    ) -> None:
        super().__init__(targets, groups, num_groups, device)
        self.pool = reader if isinstance(reader, WorkerPool) else WorkerPool(reader, workers)
        self.prepare = prepare
        self._rows = torch.arange(len(self)) if rows is None else rows.cpu().to(torch.int64)
        assert self._rows.shape == self.groups.shape, "one row for every item"

    def read(self, index: Tensor) -> Tree:
        """Read and prepare the items `index` [n]; all workers share the n items."""
        return self._finish(self.pool.submit(self._rows_of(index)))

    def subset(self, index: Tensor) -> StreamedData:
        """Return the chosen items as a set of their own; it shares the reader and the workers."""
        index = index.cpu()
        return StreamedData(
            self.pool,
            None if self.targets is None else self.targets[index],
            self.groups[index],
            self.num_groups,
            prepare=self.prepare,
            device=self.device,
            rows=self._rows[index],
        )

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass in batches of `size`; workers read a few batches ahead of the caller."""
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        waiting: collections.deque[tuple[Tensor, Work]] = collections.deque()
        ahead = BATCHES_AHEAD if self.pool.workers else 0
        try:
            for index in order.split(size):
                waiting.append((index, self.pool.submit(self._rows_of(index))))
                if len(waiting) > ahead:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())
        finally:  # the caller may stop in the middle of a pass
            for _, work in waiting:
                work.cancel()

    def close(self) -> None:
        """Stop the workers, which every set that shares them stops using; a read restarts them."""
        self.pool.close()

    def _rows_of(self, index: Tensor) -> list[int]:
        rows: list[int] = self._rows[index.cpu()].tolist()
        return rows

    def _finish(self, work: Work) -> Tree:
        return self.prepare(tree_map(lambda leaf: leaf.to(self.device), work.result()))

    def _batch(self, index: Tensor, work: Work) -> Batch:
        targets = None if self.targets is None else self.targets[index].to(self.device)
        return Batch(self._finish(work), targets, self.groups[index].to(self.device))


class Work:
    """One read under way: its chunks in order, or the rows when it is done in this process."""

    def __init__(self, pool: WorkerPool, rows: list[int], chunks: list[Future[bytes]]) -> None:
        self.pool, self._rows, self.chunks = pool, rows, chunks

    def result(self) -> Tree:
        """Wait for the read and return its tree of CPU tensors [n, ...]."""
        if not self.chunks:
            return self.pool.reader(self._rows)
        try:
            return tree_cat([pickle.loads(chunk.result()) for chunk in self.chunks])
        except BrokenProcessPool as error:
            self.pool.close()
            raise died(self.pool.workers) from error

    def cancel(self) -> None:
        """Drop the chunks that no worker has begun."""
        for chunk in self.chunks:
            chunk.cancel()


class WorkerPool:
    """Reading processes that start at the first read and hold one copy of the reader each.

    Parameters
    ----------
    reader: see `Reader`.
    workers: number of processes; 0 for none.
    """

    def __init__(self, reader: Reader, workers: int) -> None:
        if workers < 0:
            raise UserError("the number of workers is negative", got=workers, expected="0 or more")
        self.reader, self.workers = reader, workers
        self._executor: ProcessPoolExecutor | None = None
        self._stop: weakref.finalize[..., WorkerPool] | None = None

    def submit(self, rows: list[int]) -> Work:
        """Begin to read `rows`; without workers the read waits for `Work.result`."""
        if not self.workers or not rows:
            return Work(self, rows, [])
        # Two chunks a worker: images differ in cost, and the last chunk is waited for by all.
        size = max(SMALLEST_CHUNK, -(-len(rows) // (2 * self.workers)))
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        try:
            executor = self._start()
            return Work(self, rows, [executor.submit(_read, chunk) for chunk in chunks])
        except BrokenProcessPool as error:
            self.close()
            raise died(self.workers) from error

    def close(self) -> None:
        """Stop the processes; the next `submit` starts new ones."""
        if self._stop is not None:
            self._stop()
        self._executor = self._stop = None

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.workers,
                mp_context=_context(),
                initializer=_begin,
                # Pickled here once rather than for every worker, and an error shows up here.
                initargs=(pickle.dumps(self.reader),),
            )
            # Also when the pool is dropped or Python ends, whichever comes first.
            self._stop = weakref.finalize(
                self, self._executor.shutdown, wait=True, cancel_futures=True
            )
        return self._executor


def died(workers: int) -> UserError:
    """Build the error for a worker that ended without an answer."""
    return UserError(
        f"one of {workers} reading processes died",
        hint="It may have run out of memory: use fewer workers, or 0 to read in the main process; "
        "a script that starts workers needs `if __name__ == '__main__':` around its work",
    )


def _context() -> BaseContext:
    """Give the cheapest way to start a process that does not copy this one's threads and locks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
    return context


# Of this process, when it is a worker: the reader, and why it could not be had.
_reader: Reader | None = None
_failure: Exception | None = None


def _begin(pickled: bytes) -> None:
    """Make this process a worker: one thread, deaf to Ctrl-C, gone when its parent is gone."""
    global _reader, _failure
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        _reader = pickle.loads(pickled)
    except Exception as error:  # raised here it would be lost; `_read` says it
        _failure = error


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent closes no queue, so the worker would wait for ever


def _read(rows: list[int]) -> bytes:
    """Read in a worker; the tree travels as bytes."""
    if _reader is None:
        raise UserError(
            f"a reading process cannot load the reader ({type(_failure).__name__}: {_failure})",
            hint="Define its classes in an importable module, or read with 0 workers",
        )
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(_reader(rows))
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays: torch would pass each as a shared-memory file, and run out."""

    def reducer_override(self, value: Any) -> Any:
        """Replace a tensor by the call that makes it from a numpy array."""
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented
