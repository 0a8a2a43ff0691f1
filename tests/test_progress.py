from itertools import count

import pytest

from mmdd import progress


@pytest.fixture
def lines(monkeypatch):
    """What plain progress prints where every look at the clock takes 30 seconds."""
    ticks, said = count(step=30), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(progress.PlainProgress, "say", lambda self, sentence: said.append(sentence))
    return said


def test_plain_lines_tell_how_far_and_how_long(lines):
    with progress.PlainProgress(10).task("recording experts", 10) as update:
        update(0)
        update(2, loss=0.5)
        update(9)
    assert lines == [
        "recording experts 0/10  30s",
        "recording experts 2/10 loss 0.5 60s, 4 min left",
        "recording experts 9/10  90s",
        "recording experts: 120.0s",
    ]


def test_work_that_is_resumed_is_judged_by_its_own_pace(lines):
    with progress.PlainProgress(10).task("distilling", 1000) as update:
        update(900)
        update(910)
    assert lines[1] == "distilling 910/1000  60s, 9 min left"


def test_work_without_an_end_tells_no_end(lines):
    with progress.PlainProgress(10).task("distilling", None) as update:
        update(0)
        update(5)
    assert lines[1] == "distilling 5/None  60s"


def test_lines_come_seldom(lines):
    with progress.PlainProgress(100).task("distilling", 4) as update:
        for done in range(4):
            update(done)
    assert [line.split()[1] for line in lines[:-1]] == ["3/4"]
