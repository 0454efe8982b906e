"""Passes items through stages, a thread a stage: stages overlap, items keep their order.

So collectives that are issued by one stage come in the same order on every rank, whatever ends
first. The threads hold no reference to their ``Pipeline``: one that is given up ends them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from queue import SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")

# How long `close` lets what is under way go on, and how long what was broken off may take to end.
GRACE_S = 1.0


class StagedWork(dist.Work):
    """The handle of some items; is done when the last of them has passed the last stage."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s
        self._ended = Event()
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self.fault: RuntimeError | None = None  # of the first stage that failed

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Raises ``RuntimeError`` if a stage failed, or if it is not done after ``timeout``."""
        # torch says no timeout by zero.
        timeout_s = timeout.total_seconds() if timeout else self._timeout_s
        if not self._ended.wait(timeout_s):
            raise RuntimeError(f"it was not done after {timeout_s:g} s")
        if self.fault is not None:
            raise RuntimeError(str(self.fault)) from self.fault
        return True

    def is_completed(self) -> bool:
        return self._ended.is_set()

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future

    def end(self) -> None:
        # The future's callbacks come before the waiter goes on.
        if self.fault is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(self.fault)
        self._ended.set()


class Stage(NamedTuple, Generic[Item]):
    """``what`` is done there, for errors."""

    what: str
    run: Callable[[Item], None]


class _Entry(NamedTuple, Generic[Item]):
    item: Item
    work: StagedWork
    is_last: bool


@dataclass(eq=False, slots=True)
class _Shared:
    """What all threads of a pipeline know."""

    on_fault: Callable[[], None]
    fault: RuntimeError | None = None
    lock: Lock = field(default_factory=Lock)

    def fail(self, fault: RuntimeError) -> None:
        with self.lock:
            if self.fault is not None:
                return
            self.fault = fault
        self.on_fault()


class Pipeline(Generic[Item]):
    """``stages`` in order, each in a thread of its own from the first item on.

    Where one raises, no stage begins anything any more: all works that are not done, and those that
    come later, fail with its error. ``on_fault`` is called once, from any thread: it must end the
    waits of the other stages, and hold no reference to this.
    """

    def __init__(
        self, stages: Sequence[Stage[Item]], on_fault: Callable[[], None], timeout_s: float
    ) -> None:
        self._stages = stages
        self._timeout_s = timeout_s
        self._shared = _Shared(on_fault)
        self._inbox: SimpleQueue[_Entry[Item] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._end = weakref.finalize(self, self._inbox.put, None)

    def put(self, items: Sequence[Item]) -> StagedWork:
        """Send ``items``, at least one, on their way."""
        work = StagedWork(self._timeout_s)
        if not self._end.alive:
            work.fault = RuntimeError("its pipeline is closed")
            work.end()
            return work
        if not self._threads:
            self._start()
        for number, item in enumerate(items, start=1):
            self._inbox.put(_Entry(item, work, is_last=number == len(items)))
        return work

    def close(self) -> None:
        """End the threads; what is not done within a second is broken off. Idempotent."""
        self._end()
        self._join()
        if any(thread.is_alive() for thread in self._threads):
            self._shared.fail(RuntimeError("its pipeline was closed"))
            self._join()

    def _join(self) -> None:
        until_s = monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - monotonic()))

    def _start(self) -> None:
        inbox = self._inbox
        for stage in self._stages:
            outbox: SimpleQueue[_Entry[Item] | None] = SimpleQueue()
            is_last = stage is self._stages[-1]
            self._threads.append(
                Thread(
                    target=_pass_on,
                    args=(stage, self._shared, inbox, None if is_last else outbox),
                    name=f"gradsched: {stage.what}",
                    daemon=True,
                )
            )
            inbox = outbox
        for thread in self._threads:
            thread.start()


def _pass_on(
    stage: Stage[Item],
    shared: _Shared,
    inbox: SimpleQueue[_Entry[Item] | None],
    outbox: SimpleQueue[_Entry[Item] | None] | None,
) -> None:
    """A thread's life: from ``inbox`` through ``stage`` to ``outbox``, or to the works' end."""
    while (entry := inbox.get()) is not None:
        _run(stage, shared, entry)
        if outbox is not None:
            outbox.put(entry)
        elif entry.is_last:
            entry.work.end()
        del entry  # hold no buffer while there is nothing to do
    if outbox is not None:
        outbox.put(None)


def _run(stage: Stage[Item], shared: _Shared, entry: _Entry[Item]) -> None:
    if shared.fault is None:
        try:
            stage.run(entry.item)
            return
        except BaseException as error:  # whatever it is, somebody waits for it
            fault = RuntimeError(f"{stage.what} failed: {error}")
            fault.__cause__ = error
            shared.fail(fault)
    entry.work.fault = entry.work.fault or shared.fault
