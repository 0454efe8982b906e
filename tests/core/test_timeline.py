from __future__ import annotations

import doctest

from lightning_gradsched.core import timeline as timeline_module
from lightning_gradsched.core.timeline import COMMUNICATION, COMPUTE, QUEUE, Span, Timeline

STEP = Timeline(
    (
        Span(COMPUTE, "between", -4.0, 0.0),
        Span(COMPUTE, "backward", 0.0, 10.0),
        Span(QUEUE, "0", 2.0, 3.0),
        Span(COMMUNICATION, "0", 3.0, 7.0),
        Span(COMMUNICATION, "1", 6.0, 12.0),
        Span(COMMUNICATION, "2", 13.0, 14.0),
    )
)


def test_doctests() -> None:
    assert doctest.testmod(timeline_module).failed == 0


def test_busy_time_is_the_union_and_exposed_time_what_compute_does_not_cover() -> None:
    assert STEP.busy_s(COMPUTE) == 14.0
    assert STEP.busy_s(COMMUNICATION) == 10.0  # 3 to 12 and 13 to 14
    assert STEP.exposed_s() == 3.0  # 10 to 12 and 13 to 14


def test_a_transfer_lasts_from_its_launch_and_is_its_own_from_when_the_link_is_free() -> None:
    assert {g: span.length_s for g, span in STEP.transfers().items()} == {"0": 4, "1": 6, "2": 1}
    own = STEP.own_transfers()
    assert [[p[2:] for p in own[g]] for g in "012"] == [[(3, 7)], [(7, 12)], [(13, 14)]]


def test_a_transfer_in_pieces_lets_others_pass() -> None:
    spans = [("big", 0, 2), ("urgent", 1, 3), ("big", 1, 5), ("big", 4, 6), ("last", 8, 9)]
    step = Timeline(tuple(Span(COMMUNICATION, *span) for span in spans))
    own = step.own_transfers()
    assert {label: [piece[2:] for piece in pieces] for label, pieces in own.items()} == {
        "big": [(0, 2), (3, 6)],
        "urgent": [(2, 3)],
        "last": [(8, 9)],
    }
    assert step.transfers()["big"].length_s == 6


def test_of_transfers_that_end_at_once_the_first_has_had_the_link() -> None:
    """As where all wait for a late rank: the second ends first, by another thread."""
    spans = Span(COMMUNICATION, "first", 0, 9.25), Span(COMMUNICATION, "second", 1, 9)
    own = Timeline(spans).own_transfers()
    assert [[piece[2:] for piece in pieces] for pieces in own.values()] == [[(0, 9.25)], [(9, 9)]]
    late = *spans, Span(COMMUNICATION, "second", 10, 11)
    assert [p[2:] for p in Timeline(late).own_transfers()["second"]] == [(10, 11)]
    pieces = Span(COMMUNICATION, "0", 0, 9.25), Span(COMMUNICATION, "0", 1, 9)
    assert Timeline(pieces).own_transfers() == {"0": (Span(COMMUNICATION, "0", 0, 9.25),)}


def test_chrome_trace_spreads_overlapping_spans_over_rows() -> None:
    events = STEP.to_chrome_trace(rank=3)["traceEvents"]
    rows = {event["name"]: event["tid"] for event in events if event["cat"] == COMMUNICATION}
    assert rows == {"0": "communication", "1": "communication 1", "2": "communication"}
    backward = next(event for event in events if event["name"] == "backward")
    assert (backward["ts"], backward["dur"], backward["pid"]) == (0.0, 10e6, 3)
