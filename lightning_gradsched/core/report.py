"""How much communication was hidden, and why the rest was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from lightning_gradsched.core.timeline import COMMUNICATION, QUEUE, Span, Timeline

BACKWARD = "backward"
BETWEEN = "optimizer, data, forward"

HIDDEN = "hidden"
LAST_GROUP = "last group"
READY_LATE = "ready too late to hide"
WAITED_FOR_ORDER = "waited for order"
WAITED_FOR_LINK = "waited for the link"


class GroupInfo(NamedTuple):
    """What a group carries: ``label`` as on the timeline, its parameters in order, its bytes."""

    label: str
    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group in one step; times in seconds since backward began.

    ``exposed_s`` is the part of the group's own transfer that ran after backward had ended.
    """

    label: str
    names: tuple[str, ...]
    nbytes: int
    ready_s: float
    launch_s: float
    finish_s: float
    exposed_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Medians over the recorded steps; the rows are those of the step of median exposed time.

    ``step_s`` runs from the end of one reduction to the end of the next, so it holds the optimizer,
    the data loader and the forward pass too; ``compute_s`` is ``step_s`` without the exposed wait.
    """

    n_steps: int
    step_s: float
    compute_s: float
    comm_s: float
    exposed_s: float
    rows: tuple[GroupRow, ...]

    @property
    def overlap(self) -> float:
        """Share of the communication that computation hid, 0 to 1."""
        return 1.0 - self.exposed_s / self.comm_s if self.comm_s else 1.0

    @classmethod
    def of(cls, timelines: Sequence[Timeline], groups: Sequence[GroupInfo]) -> OverlapReport:
        """Sum up measured steps. ``groups`` in launch order. Needs at least one timeline."""
        typical = sorted(timelines, key=Timeline.exposed_s)[(len(timelines) - 1) // 2]
        step_s = median(map(_extent_s, timelines))
        exposed_s = median(map(Timeline.exposed_s, timelines))
        return cls(
            n_steps=len(timelines),
            step_s=step_s,
            compute_s=step_s - exposed_s,
            comm_s=median(t.busy_s(COMMUNICATION) for t in timelines),
            exposed_s=exposed_s,
            rows=_rows(typical, groups),
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "overlap": self.overlap}

    def __str__(self) -> str:
        head = (
            f"step {self.step_s * 1e3:.1f} ms = compute {self.compute_s * 1e3:.1f}"
            f" + exposed communication {self.exposed_s * 1e3:.1f}"
            f"   (communication {self.comm_s * 1e3:.1f} ms, {self.overlap:.0%} hidden;"
            f" median of {self.n_steps} recorded steps)"
        )
        return "\n".join([head, _HEADER, *map(_line, self.rows)])


_HEADER = "group  params        KiB  ready ms  launch ms  finish ms  exposed ms  why"


def _line(row: GroupRow) -> str:
    return (
        f"{row.label:>5}  {len(row.names):>6}  {row.nbytes / 1024:>9.1f}  {row.ready_s * 1e3:>8.2f}"
        f"  {row.launch_s * 1e3:>9.2f}  {row.finish_s * 1e3:>9.2f}  {row.exposed_s * 1e3:>10.2f}"
        f"  {row.reason}"
    )


def _extent_s(timeline: Timeline) -> float:
    return max(s.end_s for s in timeline.spans) - min(s.start_s for s in timeline.spans)


def _rows(timeline: Timeline, groups: Sequence[GroupInfo]) -> tuple[GroupRow, ...]:
    queued = {s.label: s for s in timeline.spans if s.track == QUEUE}
    sent = {s.label: s for s in timeline.spans if s.track == COMMUNICATION}
    backward_end_s = max(s.end_s for s in timeline.spans if s.label == BACKWARD)
    rows: list[GroupRow] = []
    link_free_s = 0.0
    for group in groups:
        transfer = sent[group.label]
        is_last = group is groups[-1]
        rows.append(
            _row(group, queued[group.label], transfer, link_free_s, backward_end_s, is_last)
        )
        link_free_s = max(link_free_s, transfer.end_s)
    return tuple(rows)


def _row(
    group: GroupInfo,
    queue: Span,
    transfer: Span,
    link_free_s: float,
    backward_end_s: float,
    is_last: bool,
) -> GroupRow:
    """``link_free_s``: when the groups before had left the link; the transfer starts no sooner."""
    begin_s = min(max(transfer.start_s, link_free_s), transfer.end_s)
    exposed_s = max(0.0, transfer.end_s - max(begin_s, backward_end_s))
    fill_s = transfer.start_s - queue.end_s
    if exposed_s == 0:
        reason = HIDDEN
    elif queue.start_s + fill_s + (transfer.end_s - begin_s) > backward_end_s:
        reason = LAST_GROUP if is_last else READY_LATE
    elif queue.end_s - queue.start_s >= begin_s - transfer.start_s:
        reason = WAITED_FOR_ORDER
    else:
        reason = WAITED_FOR_LINK
    return GroupRow(
        *group, queue.start_s, transfer.start_s, transfer.end_s, exposed_s=exposed_s, reason=reason
    )
