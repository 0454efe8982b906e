"""Names the parameters and ranks of a reduction that does not finish.

Every wait of the engine for other ranks goes through ``Watchdog``. One that lasts for a third of
``stall_timeout_s`` is told of in a warning, one that lasts longer than the limit, or that the
network breaks off, ends in a ``ReductionError``; both name what was waited for and, by
[Note: the roll call], the ranks that are missing. A wait that is short costs a few microseconds.

[Note: the patrol] One daemon thread a process group asks the store, and nobody else does: a store
whose host is gone may never answer. The others put requests into its queue and wait for a bounded
time. It holds no reference to the engine, so that an engine which is given up can end it.
"""

from __future__ import annotations

import logging
import re
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from time import monotonic
from typing import Any

import torch.distributed as dist

from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.roll_call import Findings, RollCall, first_line, open_store

log = logging.getLogger("lightning_gradsched")

# Python looks at Ctrl-C between two slices of a wait in C++.
SLICE_S = 1.0
MIN_SLICE_S = 0.01
MOST_PATIENCE_S = 20.0
LONGEST_GOODBYE_S = 1.0


@dataclass(eq=False, slots=True)
class Wait:
    """A wait that goes on; for a collective on a GPU's stream, until its ``work`` is done."""

    what: object  # its str names it
    work: dist.Work | None = None
    since_s: float = field(default_factory=monotonic)
    warned: bool = False
    given_up: bool = False

    @property
    def lasted_s(self) -> float:
        return monotonic() - self.since_s

    def is_done(self) -> bool:
        """Of a work on a stream; a work that has failed is not done."""
        with suppress(RuntimeError):
            return self.work is not None and self.work.is_completed()
        return False


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds until things happen, all derived from ``stall_timeout_s``."""

    stall_timeout_s: float

    @property
    def warn_s(self) -> float:
        return self.stall_timeout_s / 3

    @property
    def patience_s(self) -> float:
        """How long ranks may take to answer a roll call."""
        return min(self.stall_timeout_s / 5, MOST_PATIENCE_S)

    @property
    def ask_s(self) -> float:
        """How long a roll call may take, with what is left of one that is under way."""
        return 1.5 * self.patience_s

    @property
    def overdue_s(self) -> float:
        """When the patrol must have warned: it may be in a roll call of others when that is due."""
        return self.warn_s + self.patience_s + self.period_s

    @property
    def give_up_s(self) -> float:
        """The rest of the timeout goes into asking who is missing."""
        return self.stall_timeout_s - self.ask_s

    @property
    def period_s(self) -> float:
        """How often a rank looks whether it is asked."""
        return self.patience_s / 4


@dataclass(eq=False, slots=True)
class Progress:
    """What the engine's threads write and the patrol reads."""

    n_issued: int = 0  # collectives begun: equal on ranks that have come as far
    describe: Callable[[], str] = lambda: "making its engine"
    remark: str = ""  # for those who ask for remarks
    waits: dict[int, Wait] = field(default_factory=dict)

    def status(self) -> tuple[int, str, str]:
        waits = [f"waiting for {wait.what}" for wait in list(self.waits.values())[:1]]
        return self.n_issued, ", ".join([self.describe(), *waits]), self.remark


class Ending(str):
    """A request to the patrol: leave this as the last answer, and end."""


class _Patrol:
    """See [Note: the patrol]."""

    def __init__(self, rank: int, limits: Limits, roll_call: RollCall, progress: Progress) -> None:
        self._rank = rank
        self._limits = limits
        self._roll_call = roll_call
        self._progress = progress
        self._found = Findings()
        self._found_at_s = 0.0
        self.requests: SimpleQueue[Future[Findings] | Ending] = SimpleQueue()

    @property
    def last(self) -> Findings:
        return self._found

    def run(self) -> None:
        while True:
            try:
                request = self.requests.get(timeout=self._limits.period_s)
            except Empty:
                self._look_around()
                continue
            if isinstance(request, Ending):
                self._roll_call.end(request)
                return
            request.set_result(self._found if self._knows_already() else self._call())

    def _knows_already(self) -> bool:
        age_s = monotonic() - self._found_at_s
        return self._found.blames and age_s < self._limits.patience_s

    def _call(self) -> Findings:
        return self._note(self._roll_call.call(self._limits.patience_s))

    def _note(self, found: Findings) -> Findings:
        waits = list(self._progress.waits.values())
        if found.store_fault and any(wait.since_s < self._found_at_s for wait in waits):
            # All that can still be known is what was found earlier in the same wait.
            self._found = replace(self._found, store_fault=found.store_fault)
        else:
            self._found, self._found_at_s = found, monotonic()
        return self._found

    def _look_around(self) -> None:
        if self._roll_call.answer() and self._roll_call.listens:
            self._note(self._roll_call.listen(self._limits.patience_s))
        for key, wait in list(self._progress.waits.items()):
            if wait.is_done():
                self._progress.waits.pop(key, None)
            elif wait.lasted_s > self._limits.warn_s and not wait.warned:
                wait.warned = True
                self._tell(logging.WARNING, wait, "gives up")
            elif (
                wait.work is not None
                and wait.lasted_s > self._limits.give_up_s
                and not wait.given_up
            ):
                # No thread of ours waits there; the backend's own watchdog ends the process.
                wait.given_up = True
                self._tell(logging.ERROR, wait, "is ended by the backend")

    def _tell(self, level: int, wait: Wait, what_follows: str) -> None:
        text = self.text(wait, what_follows)
        log.log(level, "%s %s", text, self._call().text(self._progress.n_issued))

    def text(self, wait: Wait, what_follows: str) -> str:
        return (
            f"rank {self._rank} has waited {wait.lasted_s:.1f} s for {wait.what}; it"
            f" {what_follows} after stall_timeout_s={self._limits.stall_timeout_s:g}."
        )


class Watchdog:
    """Bounds and explains an engine's waits for other ranks. All ranks of ``group`` make it alike.

    ``group``: the ranks that are called; all where None. It is not used otherwise.
    ``on_stream``: the GPU's stream waits for works, and not the host.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        stall_timeout_s: float,
        *,
        on_stream: bool = False,
    ) -> None:
        # Ends what is in flight: it cannot finish, and would keep the process from ending.
        self.abort: Callable[[], object] = lambda: None
        self._on_stream = on_stream
        self._rank = dist.get_rank()
        self._limits = Limits(stall_timeout_s)
        self._progress = Progress()
        self._patrol: _Patrol | None = None
        self._end: weakref.finalize[..., Watchdog] | None = None
        if dist.get_world_size(group) > 1:
            self._start_patrol(group)

    def also_abort(self, end: Callable[[], object]) -> None:
        """When the engine gives up, call ``end`` first."""
        abort = self.abort

        def both() -> None:
            end()
            abort()

        self.abort = both

    def describe_by(self, describe: Callable[[], str]) -> None:
        """What this rank says of itself when asked, by another thread: a method, held weakly."""
        method = weakref.WeakMethod(describe)

        def describe_if_alive() -> str:
            alive = method()
            return alive() if alive is not None else "its engine is gone"

        self._progress.describe = describe_if_alive

    def issued(self) -> None:
        """A collective has begun: this rank has come so far."""
        self._progress.n_issued += 1

    @property
    def give_up_s(self) -> float:
        """How long a wait may take: the rest of the timeout is left to ask who is missing."""
        return self._limits.give_up_s

    def missing(self) -> str:
        """In a sentence, which ranks are missing for good; empty if none. Not collective, slow."""
        found = self._ask()
        return found.text(self._progress.n_issued) if found.blames else ""

    def remark(self, remark: str) -> None:
        """What this rank has to say to those that ask for ``remarks``."""
        self._progress.remark = remark

    def remarks(self) -> tuple[dict[int, str], tuple[int, ...]]:
        """The remark of every rank that has one, and the ranks that did not answer.

        Not collective, but slow.
        """
        found = self._ask()
        remarks = {rank: answer.remark for rank, answer in found.answers.items()}
        remarks[self._rank] = self._progress.remark
        said = {rank: remark for rank, remark in sorted(remarks.items()) if remark}
        return said, found.silent

    def wait(self, work: Any, what: object) -> None:
        """``work.wait()``, bounded and explained.

        Raises:
            ReductionError: it did not finish in time, or the network broke it off.
        """
        if self._on_stream:
            work.wait()
            if self._patrol is not None:
                # One for each bucket: the next step's takes the place of this one's.
                self._progress.waits[id(what)] = Wait(what, work)
        elif not isinstance(work, dist.Work):
            with self.waiting_for(what):
                work.wait()
        elif work.is_completed():  # the most usual case, and the cheapest
            try:
                work.wait()
            except RuntimeError as error:
                raise self._explained(Wait(what), error) from error
        else:
            wait = Wait(what)
            with _Waiting(self, wait):
                self._wait_in_slices(work, wait)

    def waiting_for(self, what: object) -> AbstractContextManager[None]:
        """Explain what takes long or breaks off within, in any thread. ``str(what)`` names it.

        Only ``wait`` ends a wait: elsewhere the body must.
        """
        return _Waiting(self, Wait(what))

    def close(self, why: str = "") -> None:
        """End the thread; ranks that go on waiting for this one are told ``why``. Idempotent."""
        end = self._end.detach() if self._end is not None else None
        if end is not None:
            _, _, (patrol, thread), _ = end
            _end_patrol(patrol, thread, why or _with_fault("its engine was detached"))
        self._progress.waits.clear()

    def _start_patrol(self, group: dist.ProcessGroup | None) -> None:
        ranks = dist.get_process_group_ranks(group)
        store = open_store(group, self._rank)
        if store is None:
            return
        roll_call = RollCall(store, self._rank, ranks, self._progress.status)
        roll_call.join()
        patrol = _Patrol(self._rank, self._limits, roll_call, self._progress)
        thread = Thread(target=patrol.run, name="gradsched-watchdog", daemon=True)
        thread.start()
        self._patrol = patrol
        # Runs when the process exits, or the engine is garbage.
        self._end = weakref.finalize(self, _end_patrol, patrol, thread)

    def _wait_in_slices(self, work: dist.Work, wait: Wait) -> None:
        until_s = wait.since_s + self._limits.give_up_s
        while not work.is_completed():
            # Either the slice is over, or the work has failed: then the last wait says how.
            with suppress(RuntimeError):
                work.wait(timedelta(seconds=min(SLICE_S, max(MIN_SLICE_S, until_s - monotonic()))))
            if wait.lasted_s > self._limits.overdue_s:
                self._warn_for_patrol(wait)
            if monotonic() > until_s and not work.is_completed():
                limit_s = self._limits.stall_timeout_s
                raise RuntimeError(f"it did not finish in time for stall_timeout_s={limit_s:g}")
        work.wait()

    def _warn_for_patrol(self, wait: Wait) -> None:
        """A patrol that has not warned by now hangs in a request to the store."""
        if self._patrol is not None and not wait.warned:
            wait.warned = True
            found = Findings(store_fault="a request hangs").text(self._progress.n_issued)
            log.warning("%s %s", self._patrol.text(wait, "gives up"), found)

    def _explained(self, wait: Wait, cause: RuntimeError) -> ReductionError:
        lasted_s = wait.lasted_s
        found = self._ask().text(self._progress.n_issued)
        self.close(f"it gave up waiting for {wait.what}. {found}".rstrip("."))
        with suppress(Exception):  # not every backend can
            self.abort()
        return ReductionError(
            f"rank {self._rank} waited {lasted_s:.1f} s for {wait.what} and gives up:"
            f" {_cause_in_short(cause)}. {found}"
        )

    def _ask(self) -> Findings:
        if self._patrol is None:
            return Findings(store_fault="there is none")
        if self._end is None or not self._end.alive:
            return self._patrol.last
        asked: Future[Findings] = Future()
        self._patrol.requests.put(asked)
        try:
            return asked.result(timeout=self._limits.ask_s)
        except FutureTimeoutError:
            last = self._patrol.last
            return last if last.blames else Findings(store_fault="a request hangs")


class _Waiting:
    """See ``Watchdog.waiting_for``; a class, as a generator costs several times as much."""

    __slots__ = ("_wait", "_watchdog")

    def __init__(self, watchdog: Watchdog, wait: Wait) -> None:
        self._watchdog, self._wait = watchdog, wait

    def __enter__(self) -> None:
        self._watchdog._progress.waits[id(self._wait)] = self._wait

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if isinstance(error, RuntimeError) and not isinstance(error, GradSchedError):
                raise self._watchdog._explained(self._wait, error) from error
        finally:
            self._watchdog._progress.waits.pop(id(self._wait), None)


def _cause_in_short(cause: RuntimeError) -> str:
    """Without gloo's source file and its guesses; the traceback has it in full."""
    text = first_line(cause).split(" This is typically caused by")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", text).rstrip(".")


def _end_patrol(patrol: _Patrol, thread: Thread, why: str = "") -> None:
    patrol.requests.put(Ending(why or _with_fault("its process ended")))
    # The garbage collector may run in that very thread; if it is stuck, it ends with the process.
    if thread is not current_thread():
        thread.join(LONGEST_GOODBYE_S)


def _with_fault(why: str) -> str:
    """``why``, and the exception that is being handled or has ended the program, if any."""
    fault = sys.exc_info()[1] or getattr(sys, "last_value", None)
    return f"{why} after {type(fault).__name__}: {first_line(fault)}" if fault else why
