"""What stands where in the picture of a step, decided once for the PNG and for the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from lightning_gradsched.core.report import BACKWARD, BETWEEN
from lightning_gradsched.core.timeline import (
    COMPUTE,
    QUEUE,
    Interval,
    Span,
    Timeline,
    lanes,
)
from lightning_gradsched.core.two_steps import two_steps
from lightning_gradsched.trace import Trace

# Kinds of box and their names in the legend, in the order in which a step meets them.
KINDS = {
    "between": "optimizer, data, forward",
    "backward": "backward",
    "fill": "filling a group",
    "waiting": "full group waits",
    "hidden": "communication, hidden",
    "exposed": "communication, exposed",
}
# What happens between two backwards is cut where it is longer than so many times the rest.
LONGEST_BETWEEN = 1.0
# A wait shorter than this share of the picture would be a hair.
SHORTEST_WAIT = 1e-3
ROW_HEIGHT = 1.0
LANE_HEIGHT, MOST_LANES_HEIGHT = 0.3, 2.4


class Box(NamedTuple):
    """``text`` stands in the box where it fits, ``tip`` beside the pointer."""

    kind: str
    start_s: float
    end_s: float
    text: str
    tip: str


class Row(NamedTuple):
    """Boxes of one lane do not overlap. ``height`` is in rows of one lane."""

    name: str
    lanes: tuple[tuple[Box, ...], ...]
    height: float


class Panel(NamedTuple):
    """One step; ``exposed`` is where communication goes on and nothing hides it."""

    title: str
    rows: tuple[Row, ...]
    exposed: tuple[Interval, ...]


class Picture(NamedTuple):
    """Panels over one time axis, which goes from ``start_s`` to ``end_s``."""

    panels: tuple[Panel, ...]
    start_s: float
    end_s: float

    def kinds(self) -> list[str]:
        """The kinds of box that occur, in the order of ``KINDS``."""
        lanes = [lane for panel in self.panels for row in panel.rows for lane in row.lanes]
        present = {box.kind for lane in lanes for box in lane}
        return [kind for kind in KINDS if kind in present]


def picture_of(trace: Trace) -> Picture:
    """The typical measured step, below the predicted one where there is one.

    Where reductions go on into the next step, two predicted ones in a row.
    """
    steps = {"measured": trace.typical}
    if trace.predicted is not None:
        goes_on = min(span.start_s for span in trace.predicted.spans) >= 0
        steps = (
            {"predicted, two steps": two_steps(trace.predicted), **steps}
            if goes_on
            else {"predicted": _without_optimizer(trace.predicted), **steps}
        )
    spans = [span for step in steps.values() for span in step.spans]
    end_s = max(span.end_s for span in spans)
    start_s = max(min(span.start_s for span in spans), -LONGEST_BETWEEN * end_s)
    panels = (_panel(title, step, start_s, end_s) for title, step in steps.items())
    return Picture(tuple(panels), start_s, end_s)


def picture_of_steps(steps: Mapping[str, Timeline]) -> Picture:
    """A panel for each, by title, over one time axis; computations have their names alone."""
    spans = [span for step in steps.values() for span in step.spans]
    start_s, end_s = min(s.start_s for s in spans), max(s.end_s for s in spans)
    panels = (_panel(name, step, start_s, end_s, with_ms=False) for name, step in steps.items())
    return Picture(tuple(panels), start_s, end_s)


def _without_optimizer(predicted: Timeline) -> Timeline:
    """The simulated step, in which nothing but forward comes before backward, called so."""
    return Timeline(
        tuple(s._replace(label="forward") if s.label == BETWEEN else s for s in predicted.spans)
    )


def _panel(
    title: str, step: Timeline, start_s: float, end_s: float, *, with_ms: bool = True
) -> Panel:
    exposed = exposed_intervals(step)
    own = step.own_transfers()
    waits = [s for s in step.spans if s.track == QUEUE]
    waits += [
        Span(QUEUE, label, whole.start_s, own[label][0].start_s)
        for label, whole in step.transfers().items()
        if own[label][0].start_s > whole.start_s
    ]
    rows = [_row("compute", [_compute_boxes(step, start_s, with_ms)])]
    long_waits = [s for s in waits if s.end_s - s.start_s > SHORTEST_WAIT * (end_s - start_s)]
    if long_waits:
        rows.append(_row("waiting", [map(_waiting_box, lane) for lane in lanes(long_waits)]))
    pieces = chain.from_iterable(own.values())
    boxes = [box for piece in pieces for box in _transfer_boxes(piece, exposed)]
    rows.append(_row("communication", [boxes]))
    exposed_ms = step.exposed_s() * 1e3
    return Panel(f"{title}: {exposed_ms:.1f} ms exposed", tuple(rows), tuple(exposed))


def _row(name: str, lanes: Sequence[Iterable[Box]]) -> Row:
    height = min(max(LANE_HEIGHT * len(lanes), 2 * LANE_HEIGHT), MOST_LANES_HEIGHT)
    is_thin = name == "waiting"
    return Row(name, tuple(map(tuple, lanes)), height if is_thin else ROW_HEIGHT)


def exposed_intervals(step: Timeline) -> list[Interval]:
    """Where communication goes on and no computation; as long together as ``exposed_s``.

    >>> spans = Span("compute", "backward", 0, 3), Span("communication", "0", 2, 5)
    >>> exposed_intervals(Timeline(spans))
    [(3, 5)]
    """
    compute = [(s.start_s, s.end_s) for s in step.spans if s.track == COMPUTE]
    pieces = chain.from_iterable(step.own_transfers().values())
    own = [(piece.start_s, piece.end_s) for piece in pieces]
    return [piece for whole in own for piece in _without(whole, compute)]


def _without(whole: Interval, holes: Iterable[Interval]) -> list[Interval]:
    """The pieces of ``whole`` that no hole covers."""
    pieces: list[Interval] = []
    reached, end = whole
    for hole_start, hole_end in sorted(holes):
        if reached < min(hole_start, end):
            pieces.append((reached, min(hole_start, end)))
        reached = max(reached, hole_end)
    return [*pieces, (reached, end)] if reached < end else pieces


def _compute_boxes(step: Timeline, shown_from_s: float, with_ms: bool) -> list[Box]:
    """Fills interrupt what computes around them, whose text goes to its longest piece."""
    fills = [s for s in step.spans if s.track == COMPUTE and s.label.startswith("fill ")]
    boxes: list[Box] = []
    holes = [(s.start_s, s.end_s) for s in fills]
    for span in (s for s in step.spans if s.track == COMPUTE and s not in fills):
        kind = "backward" if span.label.startswith(BACKWARD) else "between"
        cut = "… " if span.start_s < shown_from_s else ""
        ms = f" {(span.end_s - span.start_s) * 1e3:.1f} ms" if with_ms else ""
        text = f"{cut}{span.label}{ms}"
        pieces = _without((max(span.start_s, shown_from_s), span.end_s), holes)
        longest = max(pieces, key=_length_s, default=None)
        tip = _tip(span.label, span)
        boxes += [Box(kind, *piece, text if piece == longest else "", tip) for piece in pieces]
    # Last, so that a thin one lies on its neighbours' edges.
    return boxes + [Box("fill", s.start_s, s.end_s, "", _tip(s.label, s)) for s in fills]


def _waiting_box(span: Span) -> Box:
    return Box("waiting", span.start_s, span.end_s, "", _tip(f"group {span.label} waits", span))


def _transfer_boxes(span: Span, exposed: Sequence[Interval]) -> list[Box]:
    """What is hidden and what is exposed of a piece of a transfer."""
    whole = span.start_s, span.end_s
    hidden = _without(whole, exposed)
    tip = _tip(f"group {span.label}", span)
    boxes = [Box("hidden", *piece, span.label, tip) for piece in hidden]
    for start_s, end_s in _without(whole, hidden):
        exposed_ms = f"; {(end_s - start_s) * 1e3:.2f} ms exposed"
        boxes.append(Box("exposed", start_s, end_s, span.label, tip + exposed_ms))
    return boxes


def _tip(what: str, span: Span) -> str:
    start_ms, end_ms = span.start_s * 1e3, span.end_s * 1e3
    return f"{what}: {end_ms - start_ms:.2f} ms, from {start_ms:.2f} to {end_ms:.2f}"


def _length_s(interval: Interval) -> float:
    return interval[1] - interval[0]
