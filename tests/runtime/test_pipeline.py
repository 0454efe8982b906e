"""The pipeline alone: order, overlap, faults and ends, without a network."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from threading import enumerate as threads

import pytest

from lightning_gradsched.runtime.pipeline import Pipeline, Stage
from tests.runtime.threads import left_threads

TIMEOUT_S = 20.0
OWN = "gradsched: stage"


def pipeline(*stages: Callable[[str], object], on_fault: Callable[[], None] = lambda: None):
    named = [Stage(f"stage {i}", stage) for i, stage in enumerate(stages)]
    return Pipeline(named, on_fault, TIMEOUT_S)


def test_stages_overlap_and_each_keeps_the_order():
    log: list[str] = []
    later_began = Event()

    def first(item: str) -> None:
        log.append(f"first {item}")
        if item == "b":
            later_began.set()

    def second(item: str) -> None:
        # Goes on only once the first stage is at the next item.
        assert later_began.wait(TIMEOUT_S)
        log.append(f"second {item}")

    line = pipeline(first, second)
    works = [line.put(["a"]), line.put(["b"])]
    assert all(work.wait() for work in works)
    line.close()
    assert [entry for entry in log if "first" in entry] == ["first a", "first b"]
    assert log[-2:] == ["second a", "second b"]
    assert left_threads(OWN) == []


def test_a_work_is_done_when_its_last_item_is():
    passing = Event()
    line = pipeline(lambda item: item == "a" or passing.wait(TIMEOUT_S))
    done: list[bool] = []
    work = line.put(["a", "b"])
    work.get_future().then(lambda _: done.append(True))
    with pytest.raises(RuntimeError, match=r"not done after 0\.01 s"):
        work.wait(timedelta(milliseconds=10))
    assert not work.is_completed()
    passing.set()
    assert work.wait()
    assert work.is_completed()
    assert done == [True]
    line.close()


def test_a_fault_ends_the_other_stages_and_reaches_every_waiter():
    broken_off = Event()

    def second(item: str) -> None:
        if item == "a":
            assert broken_off.wait(TIMEOUT_S)
            raise OSError("broken off")

    def first(item: str) -> None:
        if item == "b":
            raise ValueError("no such tensor")

    line = pipeline(first, second, on_fault=broken_off.set)
    works = [line.put([item]) for item in "abc"]
    for work in works:
        with pytest.raises(RuntimeError, match="stage 0 failed: no such tensor"):
            work.wait()
    with pytest.raises(RuntimeError, match="stage 0 failed"):
        line.put(["d"]).wait()
    line.close()
    assert left_threads(OWN) == []


def test_close_breaks_off_what_does_not_end():
    broken_off = Event()
    line = pipeline(lambda _: broken_off.wait(TIMEOUT_S), on_fault=broken_off.set)
    works = [line.put(["a"]), line.put(["b"])]
    line.close()
    line.close()
    assert left_threads(OWN) == []
    with pytest.raises(RuntimeError, match="was closed"):
        works[1].wait()
    with pytest.raises(RuntimeError, match="is closed"):
        line.put(["c"]).wait()


def test_a_pipeline_that_is_given_up_ends_its_threads():
    line = pipeline(lambda _: None)
    line.put(["a"]).wait()
    started = [t for t in threads() if t.name.startswith(OWN)]
    assert len(started) == 1
    del line
    gc.collect()
    started[0].join(TIMEOUT_S)
    assert not started[0].is_alive()
