from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from mmdd import machine

LOOP = """
import resource, sys, torch
from mmdd import machine
kept = machine.keep_memory() if sys.argv[1] == "keep" else None
# what aligning leaves over lies between the blocks until the thread's cache is full of it
for _ in range(16):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)  # 64 MiB, freed at once
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    """What `keep_memory` said, and how many pages eight blocks of 64 MiB ask of the system."""
    done = subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, pages = done.stdout.split()
    return kept, int(pages)


@pytest.fixture
def anew(monkeypatch):
    """As in a process that has not asked yet, and without a word in the environment."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    machine.keep_memory.cache_clear()
    yield monkeypatch
    machine.keep_memory.cache_clear()


def test_freed_blocks_come_again_without_the_system(anew):
    kept, pages = faults("keep")
    if kept != "True":
        pytest.skip("the C library of this system has no mallopt")
    fewest = 64 * 2**20 // resource.getpagesize()
    assert pages < fewest / 10
    left, without = faults("leave")
    assert left == "None"
    if without < fewest:
        pytest.skip("this allocator keeps such blocks by itself, or pages are huge")
    assert pages < without / 10


def test_what_the_environment_says_stays(anew):
    anew.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert machine.keep_memory() is False


def test_another_c_library_is_left_alone(anew):
    class Other:
        """Without mallopt."""

    anew.setattr(machine.ctypes, "CDLL", lambda name: Other())
    assert machine.keep_memory() is False
