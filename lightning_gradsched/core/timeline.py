"""Spans of time on named tracks: one type for what was predicted and for what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple

COMPUTE = "compute"
# A group whose gradients are final but whose turn in the launch order has not come.
QUEUE = "queue"
COMMUNICATION = "communication"
TRACKS = (COMPUTE, QUEUE, COMMUNICATION)

Interval = tuple[float, float]


def first_half(group: str) -> str:
    """The label of the first half of a group that travels in halves; the second has its own."""
    return f"{group} sums"


class Span(NamedTuple):
    """``label`` was going on from ``start_s`` to ``end_s`` on ``track``."""

    track: str
    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans of one step; time 0 is the beginning of backward."""

    spans: tuple[Span, ...]

    def busy_s(self, track: str) -> float:
        """Seconds in which at least one span of ``track`` is going on."""
        return _length(self._intervals(track))

    def extent_s(self) -> float:
        """Seconds from the first of its spans to the end of the last."""
        return max(s.end_s for s in self.spans) - min(s.start_s for s in self.spans)

    def exposed_s(self) -> float:
        """Seconds of communication that no computation hides.

        >>> spans = Span("compute", "backward", 0, 3), Span("communication", "0", 2, 5)
        >>> Timeline(spans).exposed_s()
        2.0
        """
        compute = self._intervals(COMPUTE)
        both = _length([*compute, *self._intervals(COMMUNICATION)])
        return both - _length(compute)

    def transfers_s(self) -> dict[str, float]:
        """Seconds from the launch of each group to the end of its communication."""
        sent = (span for span in self.spans if span.track == COMMUNICATION)
        return {span.label: span.end_s - span.start_s for span in sent}

    def own_transfers(self) -> dict[str, tuple[Span, ...]]:
        """The communication of each group while the link was its own: one piece or more.

        Of transfers under way at once, the link is that one's which ends first. So they take turns
        in the order of their launches, but for groups that travel in pieces, to let others pass.

        >>> spans = Span("communication", "0", 1, 4), Span("communication", "1", 2, 5)
        >>> Timeline(spans).own_transfers()["1"]
        (Span(track='communication', label='1', start_s=4, end_s=5),)
        >>> spans = Span("communication", "0", 1, 5), Span("communication", "1", 2, 4)
        >>> [(piece.start_s, piece.end_s) for piece in Timeline(spans).own_transfers()["0"]]
        [(1, 2), (4, 5)]
        """
        sent = sorted((s for s in self.spans if s.track == COMMUNICATION), key=lambda s: s.start_s)
        own: dict[str, list[Span]] = {span.label: [] for span in sent}
        under_way: list[tuple[float, int]] = []  # a heap of ends, and of places in `sent`
        starts_s = [*(span.start_s for span in sent), float("inf")]
        now_s = float("-inf")
        for number, span in enumerate(sent):
            heappush(under_way, (span.end_s, number))
            now_s = max(now_s, span.start_s)
            while under_way and now_s < starts_s[number + 1]:
                end_s, first = under_way[0]
                until_s = min(end_s, starts_s[number + 1])
                _go_on(own[sent[first].label], sent[first], now_s, until_s)
                now_s = max(now_s, until_s)
                if end_s <= now_s:
                    heappop(under_way)
        # Who had no time of its own has come at its end.
        return {s.label: tuple(own[s.label]) or (s._replace(start_s=s.end_s),) for s in sent}

    def _intervals(self, track: str) -> list[Interval]:
        return [(span.start_s, span.end_s) for span in self.spans if span.track == track]

    def to_chrome_trace(self, *, rank: int = 0) -> dict[str, Any]:
        """The Trace Event Format that chrome://tracing and ui.perfetto.dev open (microseconds)."""
        events: list[dict[str, Any]] = []
        for track in TRACKS:
            for lane, spans in enumerate(lanes(s for s in self.spans if s.track == track)):
                thread = {"pid": rank, "tid": f"{track} {lane}" if lane else track}
                events.extend(
                    {
                        "name": span.label,
                        "cat": track,
                        "ph": "X",
                        "ts": span.start_s * 1e6,
                        "dur": (span.end_s - span.start_s) * 1e6,
                        **thread,
                    }
                    for span in spans
                )
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def _go_on(pieces: list[Span], span: Span, from_s: float, to_s: float) -> None:
    """Add a piece of ``span``, to the last one where it follows that at once."""
    if pieces and pieces[-1].end_s == from_s:
        pieces[-1] = pieces[-1]._replace(end_s=to_s)
    elif from_s < to_s:
        pieces.append(span._replace(start_s=from_s, end_s=to_s))


def _length(intervals: Iterable[Interval]) -> float:
    """Length of the union."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Spread spans over lanes in which none overlap: a trace viewer draws one lane a row."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: s.start_s):
        free = next((lane for lane in lanes if lane[-1].end_s <= span.start_s), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes
