"""How much communication was hidden, and why the rest was not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from lightning_gradsched.core.bound import Bounds
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.reasons import (
    STRAGGLER,
    Course,
    Fastest,
    is_latency_bound,
    reason_of,
)
from lightning_gradsched.core.report_text import text_of
from lightning_gradsched.core.timeline import COMMUNICATION, QUEUE, Span, Timeline

BACKWARD = "backward"
BETWEEN = "optimizer, data, forward"


class GroupInfo(NamedTuple):
    """What a group carries: ``label`` as on the timeline, its parameters in order, its bytes."""

    label: str
    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group in one step; times in seconds since backward began.

    ``exposed_s`` is the part of the group's own transfer that ran after backward had ended, and
    which no forward hid where reductions go on into it;
    ``waited_s`` the part of the transfer in which the last rank had not come to it yet. Of a
    straggler's row ``waited_for`` is that rank, None where ranks were not compared.
    """

    label: str
    names: tuple[str, ...]
    nbytes: int
    ready_s: float
    launch_s: float
    finish_s: float
    exposed_s: float
    reason: str
    waited_s: float = 0.0
    waited_for: int | None = None
    predicted_finish_s: float | None = None
    predicted_exposed_s: float | None = None

    @property
    def why(self) -> str:
        """The reason, and of a straggler how long the transfer waited for whom."""
        if self.reason != STRAGGLER:
            return self.reason
        if self.waited_for is None:
            return f"{self.reason}: {self.waited_s * 1e3:.1f} ms over its fastest step"
        return f"{self.reason}: waited {self.waited_s * 1e3:.1f} ms for rank {self.waited_for}"


class Prediction(NamedTuple):
    """The simulated step: forward, backward and the exposed wait, without optimizer and data."""

    step_s: float
    comm_s: float
    exposed_s: float


class TriedPlan(NamedTuple):
    """``step_s``: the median over its steps, of the slowest rank."""

    planner: str
    n_groups: int
    predicted_exposed_s: float
    step_s: float
    kept: bool


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Medians over the recorded steps; the rows are those of the step of median exposed time.

    ``step_s`` runs from the end of one reduction to the end of the next, so it holds the optimizer,
    the data loader and the forward pass too; ``compute_s`` is ``step_s`` without the exposed wait.
    ``predicted`` is None where nothing was measured to predict from, ``tried`` empty where no plans
    were tried on the job. ``bounds``: the least that a forward and a backward take, see
    ``core/bound.py``; None where nothing was measured to say.
    """

    n_steps: int
    step_s: float
    compute_s: float
    comm_s: float
    exposed_s: float
    rows: tuple[GroupRow, ...]
    predicted: Prediction | None = None
    tried: tuple[TriedPlan, ...] = ()
    bounds: Bounds | None = None

    @property
    def overlap(self) -> float:
        """Share of the communication that computation hid, 0 to 1."""
        return 1.0 - self.exposed_s / self.comm_s if self.comm_s else 1.0

    @property
    def groups(self) -> list[GroupInfo]:
        """What each row's group carries, in launch order."""
        return [GroupInfo(row.label, row.names, row.nbytes) for row in self.rows]

    @classmethod
    def of(
        cls,
        timelines: Sequence[Timeline],
        groups: Sequence[GroupInfo],
        *,
        predicted: Timeline | None = None,
        cost: CostModel | None = None,
        fastest: Sequence[Sequence[Fastest]] | None = None,
        tried: Sequence[TriedPlan] = (),
        bounds: Bounds | None = None,
    ) -> OverlapReport:
        """Sum up measured steps. ``groups`` in launch order. Needs at least one timeline.

        Args:
            predicted: the same step as it was simulated.
            cost: the network's; no group is called latency-bound without it.
            fastest: the shortest transfer over the ranks, for each timeline of each group. Where
                None, this rank's shortest of all recorded steps stands for it.
            tried: the plans that were tried on the job.
            bounds: of the profile and the cost model in force.
        """
        number = typical_step(timelines)
        step_s = median(map(step_s_of, timelines))
        exposed_s = median(map(Timeline.exposed_s, timelines))
        needed = fastest[number] if fastest is not None else _fastest_of(timelines, groups)
        return cls(
            n_steps=len(timelines),
            step_s=step_s,
            compute_s=step_s - exposed_s,
            comm_s=median(t.busy_s(COMMUNICATION) for t in timelines),
            exposed_s=exposed_s,
            rows=_rows(timelines[number], groups, needed, predicted, cost),
            predicted=_prediction(predicted) if predicted is not None else None,
            tried=tuple(tried),
            bounds=bounds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            **asdict(self),
            "predicted": self.predicted._asdict() if self.predicted is not None else None,
            "tried": [plan._asdict() for plan in self.tried],
            "bounds": self.bounds._asdict() if self.bounds is not None else None,
            "overlap": self.overlap,
        }

    def __str__(self) -> str:
        return text_of(self)


def typical_step(timelines: Sequence[Timeline]) -> int:
    """The index of the step of median exposed time, whose rows the report shows."""
    exposed_s = [timeline.exposed_s() for timeline in timelines]
    return sorted(range(len(exposed_s)), key=exposed_s.__getitem__)[(len(exposed_s) - 1) // 2]


def _prediction(timeline: Timeline) -> Prediction:
    return Prediction(step_s_of(timeline), timeline.busy_s(COMMUNICATION), timeline.exposed_s())


def _fastest_of(timelines: Sequence[Timeline], groups: Sequence[GroupInfo]) -> list[Fastest]:
    steps = [timeline.transfers() for timeline in timelines]
    return [Fastest(min(step[group.label].length_s for step in steps)) for group in groups]


def _rows(
    timeline: Timeline,
    groups: Sequence[GroupInfo],
    fastest: Sequence[Fastest],
    predicted: Timeline | None,
    cost: CostModel | None,
) -> tuple[GroupRow, ...]:
    expected = _expected(predicted) if predicted is not None else {}
    queued = {s.label: s for s in timeline.spans if s.track == QUEUE}
    sent = timeline.transfers()
    own = timeline.own_transfers()
    backward_end_s = _backward_end_s(timeline)
    rows: list[GroupRow] = []
    for group, needed in zip(groups, fastest, strict=True):
        course = _course(queued[group.label], sent[group.label], own[group.label])
        exposed_s = _exposed_s(own[group.label], timeline)
        reason = reason_of(
            course,
            exposed_s,
            needed,
            backward_end_s=backward_end_s,
            is_latency_bound=cost is not None and is_latency_bound(group.nbytes, cost),
            is_last=group is groups[-1],
        )
        predicted_finish_s, predicted_exposed_s = expected.get(group.label, (None, None))
        rows.append(
            GroupRow(
                *group,
                ready_s=course.ready_s,
                launch_s=sent[group.label].start_s,
                finish_s=sent[group.label].end_s,
                exposed_s=exposed_s,
                reason=reason,
                waited_s=max(0.0, course.transfer_s - needed.seconds),
                waited_for=needed.rank if reason == STRAGGLER else None,
                predicted_finish_s=predicted_finish_s,
                predicted_exposed_s=predicted_exposed_s,
            )
        )
    return tuple(rows)


def _course(queue: Span, sent: Span, own: Sequence[Span]) -> Course:
    others_s = sum(after.start_s - before.end_s for before, after in pairwise(own))
    return Course(
        ready_s=queue.start_s,
        order_s=queue.end_s - queue.start_s,
        fill_s=sent.start_s - queue.end_s,
        link_s=own[0].start_s - sent.start_s + others_s,
        transfer_s=sum(piece.length_s for piece in own),
    )


def _expected(predicted: Timeline) -> dict[str, tuple[float, float]]:
    """Finish and exposed seconds of each group."""
    return {
        label: (pieces[-1].end_s, _exposed_s(pieces, predicted))
        for label, pieces in predicted.own_transfers().items()
    }


def step_s_of(timeline: Timeline) -> float:
    """Seconds of its step.

    Where it goes on to the end of the next backward, from its backward's begin to that one's.

    >>> step_s_of(Timeline((Span("compute", BACKWARD, 0, 2), Span("compute", BACKWARD, 3, 5))))
    3
    """
    began_s = sorted(span.start_s for span in timeline.spans if span.label == BACKWARD)
    return began_s[1] - began_s[0] if len(began_s) == 2 else timeline.extent_s()


def _backward_end_s(timeline: Timeline) -> float:
    return max(s.end_s for s in timeline.spans if s.label == BACKWARD)


def _exposed_s(pieces: Iterable[Span], timeline: Timeline) -> float:
    """What is after backward, but for what a next forward hides that belongs to the step."""
    end_s = _backward_end_s(timeline)
    forward = [s for s in timeline.spans if s.label == BETWEEN and s.start_s >= end_s]
    return sum(_exposed_piece_s(piece, end_s, forward) for piece in pieces)


def _exposed_piece_s(piece: Span, from_s: float, forward: Iterable[Span]) -> float:
    begin_s = max(piece.start_s, from_s)
    hidden_s = sum(
        max(0.0, min(span.end_s, piece.end_s) - max(span.start_s, begin_s)) for span in forward
    )
    return max(0.0, piece.end_s - begin_s - hidden_s)
