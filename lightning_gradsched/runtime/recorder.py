"""Measures one step's timeline: marks while it runs, spans when somebody asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import torch

from lightning_gradsched.core.bound import Bounds
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.reasons import Fastest
from lightning_gradsched.core.report import (
    BACKWARD,
    BETWEEN,
    GroupInfo,
    OverlapReport,
    TriedPlan,
)
from lightning_gradsched.core.timeline import (
    COMMUNICATION,
    COMPUTE,
    QUEUE,
    Span,
    Timeline,
    first_half,
)
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives, Work

# Recorded steps that a report sums up.
REPORTED_STEPS = 16
# Late enough to be warm, early enough for short runs to have a report.
FIRST_RECORDED_STEP = 5


class Clock(Protocol):
    """Where time is read; a mark is opaque until ``seconds`` is asked about two of them."""

    def mark(self) -> Any: ...
    def mark_when_done(self, work: Work) -> Any: ...
    def seconds(self, since: Any, until: Any) -> float: ...


class CpuClock:
    """The host's clock; the end of a collective is noted by the thread that ends it."""

    def mark(self) -> list[float]:
        return [perf_counter()]

    def mark_when_done(self, work: Any) -> list[float]:
        done: list[float] = []
        work.get_future().then(lambda _: done.append(perf_counter()))
        return done

    def seconds(self, since: list[float], until: list[float]) -> float:
        return until[0] - since[0]


class CudaClock:
    """Events on the device's streams: nothing waits on the host while the step runs."""

    def __init__(self) -> None:
        self._side = torch.cuda.Stream()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark_when_done(self, work: Work) -> torch.cuda.Event:
        # Waiting on a stream of its own leaves the compute stream free to run on.
        with torch.cuda.stream(self._side):
            work.wait()
            return self.mark()

    def seconds(self, since: torch.cuda.Event, until: torch.cuda.Event) -> float:
        until.synchronize()
        elapsed_ms: float = since.elapsed_time(until)
        return elapsed_ms * 1e-3


class Recorder:
    """Marks of one step, from the end of the reduction before it to the end of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._step_began = clock.mark()
        self._ready: dict[int, Any] = {}
        self._turn: dict[int, Any] = {}
        # From launch to end, by piece; of groups that travel in halves, first and second ones.
        self._sent: dict[int, list[tuple[Any, Any]]] = {}
        self._sums: dict[int, list[tuple[Any, Any]]] = {}
        # Of a step that leaves groups to the next forward, which it lasts to the end of.
        self._is_left_open = False
        self._waits: list[tuple[Any, Any]] = []
        self._next_backward_began: Any = None
        # Of a step whose groups the end of the next backward waits for.
        self._lags = False
        self._next_backward_ended: Any = None

    def backward_began(self) -> None:
        for of_one_cut_off in (self._ready, self._turn, self._sent, self._sums):
            of_one_cut_off.clear()
        self._backward_began = self._clock.mark()

    def ready(self, group: int) -> None:
        self._ready[group] = self._clock.mark()

    def turn_came(self, group: int) -> None:
        """All groups before it are launched; it is being filled."""
        self._turn[group] = self._clock.mark()

    def launched(self, group: int, work: Work) -> None:
        piece = self._clock.mark(), self._clock.mark_when_done(work)
        self._sent.setdefault(group, []).append(piece)

    def second_half(self, group: int, work: Work) -> None:
        """The first has ended; see [Note: halves] in runtime/scatter.py."""
        self._sums[group] = self._sent.pop(group)
        self.launched(group, work)

    def backward_ended(self) -> None:
        self._backward_ended = self._clock.mark()

    def ended(self) -> None:
        self._ended = self._clock.mark()

    def left_open(self) -> None:
        """The next forward is a part of this step."""
        self._is_left_open = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it the next forward, or who else looks, waits for a group."""
        began = self._clock.mark()
        yield
        self._waits.append((began, self._clock.mark()))

    def next_backward_began(self) -> None:
        self._next_backward_began = self._clock.mark()

    def lags(self) -> None:
        """The next forward and backward are a part of this step."""
        self._lags = True

    def next_backward_ended(self) -> None:
        self._next_backward_ended = self._clock.mark()
        if self._next_backward_began is None:  # nothing has announced it
            self._next_backward_began = self._next_backward_ended

    @property
    def is_complete(self) -> bool:
        if self._lags:
            return self._next_backward_ended is not None
        return not self._is_left_open or self._next_backward_began is not None

    def timeline(self, groups: Iterable[int]) -> Timeline:
        """The step's spans; time 0 is the beginning of backward. On a GPU, waits for its end."""
        spans = [Span(COMPUTE, BACKWARD, 0.0, self._at(self._backward_ended))]
        if self._lags:
            spans = list(self._until_next_backward_ended())
        elif self._is_left_open:
            spans.extend(self._after_backward())
        else:
            spans.insert(0, Span(COMPUTE, BETWEEN, self._at(self._step_began), 0.0))
        for group in groups:
            spans.extend(self._group_spans(group))
        return Timeline(tuple(spans))

    def _until_next_backward_ended(self) -> Iterator[Span]:
        """What its own backward has waited for at its end is of the step before."""
        yield Span(COMPUTE, BACKWARD, 0.0, self._at(self._ended))
        began_s = self._at(self._next_backward_began)
        yield Span(COMPUTE, BETWEEN, self._at(self._ended), began_s)
        yield Span(COMPUTE, BACKWARD, began_s, self._at(self._next_backward_ended))

    def _after_backward(self) -> Iterator[Span]:
        """Until the next backward; in between, waits for groups."""
        began_s = self._at(self._ended)
        for began, ended in self._waits:
            yield Span(COMPUTE, BETWEEN, began_s, self._at(began))
            began_s = self._at(ended)
        yield Span(COMPUTE, BETWEEN, began_s, self._at(self._next_backward_began))

    def _group_spans(self, group: int) -> list[Span]:
        turn_s = self._at(self._turn[group])
        # A group that did not fill up by itself was closed when backward ended.
        ready_s = min(turn_s, self._at(self._ready.get(group, self._backward_ended)))
        sums = self._sent_spans(first_half(str(group)), self._sums.get(group, ()), self._ended)
        # The callback of a collective may still be on its way when its waiter goes on.
        at_latest = self._next_backward_ended if self._lags else self._ended
        sent = self._sent_spans(str(group), self._sent[group], at_latest)
        return [
            Span(QUEUE, str(group), ready_s, turn_s),
            Span(COMPUTE, f"fill {group}", turn_s, (sums or sent)[0].start_s),
            *sums,
            *sent,
        ]

    def _sent_spans(
        self, label: str, pieces: Iterable[tuple[Any, Any]], at_latest: Any
    ) -> list[Span]:
        return [
            Span(COMMUNICATION, label, self._at(launched), self._at(finished or at_latest))
            for launched, finished in pieces
        ]

    def _at(self, mark: Any) -> float:
        return self._clock.seconds(self._backward_began, mark)


class StepRecords:
    """The measured steps of one plan, and whose turn it is to be measured.

    The steps of a plan that is no longer in force are kept until one of its successor's is there.
    """

    def __init__(self, clock: Clock, every_n_steps: int) -> None:
        self._clock = clock
        self._every = every_n_steps
        self._step = 0
        self._groups: Sequence[GroupInfo] = ()  # of the recorded steps
        self._groups_in_force: Sequence[GroupInfo] = ()
        # By the step's number since the plan was made.
        self._recorded: deque[tuple[int, Recorder]] = deque(maxlen=REPORTED_STEPS)

    def start(self, groups: Sequence[GroupInfo]) -> None:
        """Another plan is in force; its ``groups`` in launch order."""
        self._groups_in_force = groups
        self._step = 0

    @property
    def are_current(self) -> bool:
        """Whether the recorded steps are of the plan in force."""
        return self._groups is self._groups_in_force

    def turn(self, finished: Recorder | None) -> Recorder | None:
        """Keep a step's marks, if there are any; a recorder for the next step, if it is due."""
        if finished is not None:
            if not self.are_current:
                self._groups = self._groups_in_force
                self._recorded.clear()
            self._recorded.append((self._step, finished))
        self._step += 1
        due = self._every > 0 and self._step % self._every == FIRST_RECORDED_STEP % self._every
        return Recorder(self._clock) if due else None

    def timelines(self) -> list[Timeline]:
        numbers = [int(group.label) for group in self._groups]
        return [recorder.timeline(numbers) for _, recorder in self._complete()]

    def _complete(self) -> list[tuple[int, Recorder]]:
        """All but one that goes on in the forward that comes or runs."""
        return [step for step in self._recorded if step[1].is_complete]

    def fastest(self, collectives: Collectives) -> list[list[Fastest]]:
        """The shortest transfer over the ranks, for each recorded step of each group. Collective.

        Raises:
            ConsensusError: on every rank, if they have recorded unlike steps.
            GradSchedError: the collectives are closed.
        """
        if not collectives.is_open:
            raise GradSchedError(
                "ranks cannot be compared after detach: ask for report(across_ranks=True) before,"
                " or for this rank's own report()"
            )
        steps = [number for number, _ in self._complete()]
        sent = [timeline.transfers() for timeline in self.timelines()]
        seconds = [[step[group.label].length_s for group in self._groups] for step in sent]
        return consensus.agree_on_fastest(collectives, steps, seconds)

    def report(
        self,
        *,
        predicted: Timeline | None = None,
        cost: CostModel | None = None,
        fastest: Sequence[Sequence[Fastest]] | None = None,
        tried: Sequence[TriedPlan] = (),
        bounds: Bounds | None = None,
    ) -> OverlapReport:
        """Sum up the recorded steps; what is known besides is as in ``OverlapReport.of``."""
        if self._every == 0:
            raise GradSchedError("no step is measured: set record_every_n_steps to 1 or more")
        if not self._complete():
            raise GradSchedError(
                f"no step is measured yet: {self._step} done since the plan was made, the first to"
                f" be measured is step {FIRST_RECORDED_STEP + 1}, then one in"
                f" record_every_n_steps={self._every}"
            )
        return OverlapReport.of(
            self.timelines(),
            self._groups,
            predicted=predicted,
            cost=cost,
            fastest=fastest,
            tried=tried,
            bounds=bounds,
        )
