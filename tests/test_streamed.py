"""Reading by worker processes: same tensors, shared pools, clear ends."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from mmdd.errors import UserError
from mmdd.real import ResidentData
from mmdd.streamed import StreamedData, WorkerPool

N, GROUPS = 50, 5
TARGETS = torch.arange(N) % GROUPS
VALUES = torch.arange(N * 6, dtype=torch.uint8).reshape(N, 2, 3)


# Workers import this file by the name of the file (its folder is on the path, see conftest.py),
# whatever pytest calls it.
HERE = Path(__file__)
sys.modules.setdefault(HERE.stem, sys.modules[__name__])


def importable(made):
    made.__module__ = HERE.stem
    return made


@importable
@dataclasses.dataclass
class Rows:
    """Reads rows of a tensor into a tree of two fields."""

    values: torch.Tensor
    delay: float = 0.0

    def __call__(self, rows):
        time.sleep(self.delay)
        part = self.values[torch.tensor(rows, dtype=torch.int64)]
        return {"pixels": part, "sum": part.flatten(1).sum(1)}


@importable
class Fails:
    def __call__(self, rows):
        if 3 in rows:
            raise UserError("row 3 is broken", got=3)
        return torch.zeros(len(rows))


@importable
class Dies:
    def __call__(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)


@importable
class Identity:
    def __call__(self, rows):
        return torch.tensor([os.getpid(), torch.get_num_threads()]).expand(len(rows), 2).clone()


@importable
def refuse():
    raise ModuleNotFoundError("no module named so")


@importable
class CannotLoad:
    def __call__(self, rows):
        raise AssertionError

    def __reduce__(self):
        return refuse, ()


def halve(tree):
    return {"pixels": tree["pixels"].float() / 2, "sum": tree["sum"]}


@pytest.fixture(scope="module", params=[0, 2])
def data(request):
    made = StreamedData(
        Rows(VALUES), TARGETS, TARGETS, GROUPS, prepare=halve, workers=request.param
    )
    yield made
    made.close()


def resident():
    tree = {"pixels": VALUES, "sum": VALUES.flatten(1).sum(1)}
    return ResidentData(tree, TARGETS, TARGETS, GROUPS, prepare=halve)


def assert_same(one, other):
    assert torch.equal(one.inputs["pixels"], other.inputs["pixels"])
    assert torch.equal(one.inputs["sum"], other.inputs["sum"])
    assert torch.equal(one.targets, other.targets)
    assert torch.equal(one.groups, other.groups)


@pytest.mark.parametrize("index", [[3], [4, 4, 0], list(range(N)), list(reversed(range(17)))])
def test_select_equals_resident(data, index):
    assert_same(data.select(torch.tensor(index)), resident().select(torch.tensor(index)))


def test_sample_equals_resident(data):
    one = data.sample(3, torch.Generator().manual_seed(1))
    assert_same(one, resident().sample(3, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_equal_resident(data, shuffled):
    def pass_over(part):
        return list(part.batches(7, torch.Generator().manual_seed(2) if shuffled else None))

    ours, theirs = pass_over(data), pass_over(resident())
    assert [len(batch) for batch in ours] == [7] * 7 + [1]
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


def test_nothing_to_read(data):
    batch = data.select(torch.tensor([], dtype=torch.int64))
    assert batch.inputs["pixels"].shape == (0, 2, 3)


def test_rows_and_subset(data):
    rows = torch.arange(N).flip(0)
    turned = StreamedData(data.pool, TARGETS, TARGETS, GROUPS, prepare=halve, rows=rows)
    chosen = torch.tensor([0, 10, 20])
    assert torch.equal(turned.read(chosen)["pixels"], data.read(N - 1 - chosen)["pixels"])
    part = turned.subset(chosen).subset(torch.tensor([2, 0]))
    assert part.pool is data.pool
    assert torch.equal(part._rows, torch.tensor([N - 21, N - 1]))
    assert_same(part.select(torch.tensor([0, 1])), turned.select(torch.tensor([20, 0])))


def test_a_pass_may_be_left(data):
    for batch in data.batches(4):
        assert len(batch) == 4
        break
    assert len(data.select(torch.arange(5))) == 5


def test_result_can_be_written_to():
    pool = WorkerPool(Rows(VALUES), 1)
    part = StreamedData(pool, TARGETS, TARGETS, GROUPS).read(torch.arange(20))
    part["pixels"].add_(1)
    pool.close()


def test_workers_start_late_have_one_thread_and_end():
    data = StreamedData(Identity(), TARGETS, TARGETS, GROUPS, workers=2)
    assert data.pool._executor is None
    found = data.read(torch.arange(N))
    assert os.getpid() not in found[:, 0].tolist()
    assert (found[:, 1] == 1).all()
    data.close()
    for pid in set(found[:, 0].tolist()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    data.close()
    assert len(data.read(torch.arange(3))) == 3  # a closed pool starts again
    data.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_reader_raises_arrives(workers):
    data = StreamedData(Fails(), TARGETS, TARGETS, GROUPS, workers=workers)
    assert len(data.read(torch.arange(3))) == 3
    with pytest.raises(UserError, match="row 3 is broken; got 3"):
        data.read(torch.arange(5))
    data.close()


def test_dead_worker_is_said():
    data = StreamedData(Dies(), TARGETS, TARGETS, GROUPS, workers=1)
    with pytest.raises(UserError, match=r"1 reading processes died.*fewer workers"):
        data.read(torch.arange(20))
    assert data.pool._executor is None
    data.close()


def test_reader_that_does_not_load_is_said():
    data = StreamedData(CannotLoad(), TARGETS, TARGETS, GROUPS, workers=1)
    with pytest.raises(UserError, match=r"ModuleNotFoundError: no module named so.*workers"):
        data.read(torch.arange(3))
    data.close()


def test_unpicklable_reader_fails_at_once():
    data = StreamedData(lambda rows: torch.zeros(len(rows)), TARGETS, TARGETS, GROUPS, workers=1)
    with pytest.raises(Exception, match="pickle"):
        data.read(torch.arange(3))


def test_negative_workers():
    with pytest.raises(UserError, match="negative"):
        WorkerPool(Identity(), -1)


def test_batches_are_read_ahead():
    data = StreamedData(Rows(VALUES, delay=0.1), TARGETS, TARGETS, GROUPS, workers=1)
    data.read(torch.arange(1))  # start the worker
    batches = data.batches(5)
    next(batches)
    time.sleep(0.6)  # the caller works
    started = time.perf_counter()
    for _ in range(3):
        next(batches)
    assert time.perf_counter() - started < 0.25  # three reads take 0.3 s when nothing was ahead
    batches.close()
    data.close()
