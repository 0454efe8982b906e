"""Spans of time on named tracks: one type for what was predicted and for what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


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

    def transfers(self) -> dict[str, Span]:
        """The communication of each group, from the launch of its first piece to its last's end."""
        whole: dict[str, Span] = {}
        for span in self._sent():
            first = whole.setdefault(span.label, span)
            whole[span.label] = first._replace(end_s=max(first.end_s, span.end_s))
        return whole

    def own_transfers(self) -> dict[str, tuple[Span, ...]]:
        """The communication of each group while the link was its own: one piece or more.

        Pieces take turns in the order of their launches: of those under way at once, each begins
        when the one before has ended.

        >>> spans = [("0", 1, 3), ("1", 1, 4), ("0", 2, 6)]
        >>> own = Timeline(tuple(Span("communication", *span) for span in spans)).own_transfers()
        >>> [[(piece.start_s, piece.end_s) for piece in own[group]] for group in "01"]
        [[(1, 3), (4, 6)], [(3, 4)]]
        """
        own: dict[str, list[Span]] = {}
        link_free_s = float("-inf")
        for span in self._sent():
            begin_s = min(max(span.start_s, link_free_s), span.end_s)
            pieces = own.setdefault(span.label, [])
            if not pieces or begin_s < span.end_s:
                _go_on(pieces, span._replace(start_s=begin_s))
            link_free_s = max(link_free_s, span.end_s)
        return {label: tuple(pieces) for label, pieces in own.items()}

    def _sent(self) -> list[Span]:
        """Pieces of communication in the order of their launches."""
        sent = (span for span in self.spans if span.track == COMMUNICATION)
        return sorted(sent, key=lambda span: (span.start_s, span.end_s))

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


def _go_on(pieces: list[Span], piece: Span) -> None:
    """Add ``piece``: to the last one where it follows that at once, for it where that was none."""
    if pieces and pieces[-1].end_s == piece.start_s:
        piece = piece._replace(start_s=pieces.pop().start_s)
    elif pieces and not pieces[-1].length_s:
        pieces.pop()
    pieces.append(piece)


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
