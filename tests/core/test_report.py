from __future__ import annotations

import doctest
import json
from typing import Any

import pytest

from lightning_gradsched.core import reasons as reasons_module
from lightning_gradsched.core.cost import AlphaBeta, Interpolated
from lightning_gradsched.core.reasons import Fastest, is_latency_bound
from lightning_gradsched.core.report import GroupInfo, OverlapReport, TriedPlan
from lightning_gradsched.core.timeline import COMMUNICATION, COMPUTE, QUEUE, Span, Timeline


def step(*groups: tuple[float, float, float], backward_s: float = 10.0) -> Timeline:
    """Each group as (ready, launched, finished)."""
    spans = [Span(COMPUTE, "before", -5.0, 0.0), Span(COMPUTE, "backward", 0.0, backward_s)]
    for number, (ready, launched, finished) in enumerate(groups):
        spans.append(Span(QUEUE, str(number), ready, launched))
        spans.append(Span(COMMUNICATION, str(number), launched, finished))
    return Timeline(tuple(spans))


def report(*timelines: Timeline, n_groups: int, **known: Any) -> OverlapReport:
    groups = [GroupInfo(str(i), (f"layer{i}.weight",), 1024) for i in range(n_groups)]
    return OverlapReport.of(timelines, groups, **known)


def test_sums_of_a_step() -> None:
    result = report(step((2, 2, 5), (10, 10, 13)), n_groups=2)
    assert (result.step_s, result.compute_s, result.comm_s) == (18.0, 15.0, 6.0)
    assert (result.exposed_s, result.overlap) == (3.0, 0.5)


@pytest.mark.parametrize(
    ("groups", "reasons"),
    [
        ([(2, 2, 5), (10, 10, 13)], ["hidden", "last group"]),
        ([(9, 9, 12), (9, 9, 15)], ["ready too late to hide", "last group"]),
        # the link was busy until 9 with group 0, whose own turn took long
        ([(1, 1, 9), (2, 2, 12)], ["hidden", "waited for the link"]),
        # ready at 1, but launched only at 9, after group 0 of the schedule
        ([(9, 9, 9.5), (1, 9.5, 11)], ["hidden", "waited for order"]),
    ],
)
def test_reasons(groups: list[tuple[float, float, float]], reasons: list[str]) -> None:
    rows = report(step(*groups), n_groups=2).rows
    assert [row.reason for row in rows] == reasons


def test_exposed_time_of_groups_adds_up_where_they_share_the_link() -> None:
    result = report(step((8, 8, 11), (9, 9, 14)), n_groups=2)
    assert [row.exposed_s for row in result.rows] == [1.0, 3.0]
    assert sum(row.exposed_s for row in result.rows) == result.exposed_s


def test_medians_over_steps_and_rows_of_the_typical_one() -> None:
    steps = [step((10, 10, 10 + exposed)) for exposed in (1.0, 9.0, 2.0)]
    result = report(*steps, n_groups=1)
    assert (result.n_steps, result.exposed_s) == (3, 2.0)
    assert result.rows[0].finish_s == 12.0


def test_the_table_has_a_row_a_group_and_the_dict_is_json() -> None:
    result = report(step((2, 2, 5), (10, 10, 13)), n_groups=2)
    lines = str(result).splitlines()
    assert "50% hidden" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["group", "0", "1"]
    assert lines[3].endswith("last group")
    assert result.to_dict()["rows"][1]["reason"] == "last group"


# Of 1024 bytes: all of it latency, half of it, none.
LATENCY = AlphaBeta(1.0, 0.0)
BANDWIDTH = AlphaBeta(0.0, 1.0)
QUICK, SLOW = Fastest(0.0, rank=3), Fastest(100.0, rank=3)


@pytest.mark.parametrize(
    ("group", "fastest", "cost", "reason"),
    [
        # never exposed, whatever else holds
        ((2, 2, 5), QUICK, LATENCY, "hidden"),
        # transfers from 9 to 13: 3 exposed, of which rank 3 caused 1.5 or more
        ((9, 9, 13), Fastest(2.5, rank=3), LATENCY, "straggler"),
        ((9, 9, 13), Fastest(2.6, rank=3), LATENCY, "latency-bound"),
        ((9, 9, 13), Fastest(2.6, rank=3), BANDWIDTH, "ready too late to hide"),
        ((9, 9, 13), Fastest(2.6, rank=3), None, "ready too late to hide"),
        # ready at 1, launched at 9: alone it would have been hidden
        ((1, 9, 13), QUICK, BANDWIDTH, "straggler"),
        ((1, 9, 13), SLOW, LATENCY, "waited for order"),
        # nobody compared ranks: of the whole transfer
        ((9, 9, 13), Fastest(2.0), BANDWIDTH, "straggler"),
        ((9, 9, 13), Fastest(2.1), BANDWIDTH, "ready too late to hide"),
    ],
)
def test_the_first_reason_that_holds_is_given(
    group: tuple[float, float, float],
    fastest: Fastest,
    cost: AlphaBeta | None,
    reason: str,
) -> None:
    last = (group[2], group[2], group[2])
    made = report(step(group, last), n_groups=2, cost=cost, fastest=[[fastest, SLOW]])
    assert made.rows[0].reason == reason


def test_a_group_behind_another_is_latency_bound_before_it_waited_for_the_link() -> None:
    behind = step((1, 1, 9), (2, 2, 12))
    reasons = [
        report(behind, n_groups=2, cost=cost, fastest=[[SLOW, SLOW]]).rows[1].reason
        for cost in (LATENCY, BANDWIDTH)
    ]
    assert reasons == ["latency-bound", "waited for the link"]


def test_latency_without_a_line_is_that_of_the_least_measured_size() -> None:
    assert is_latency_bound(1000, Interpolated((100.0, 1000.0), (1.0, 2.0)))
    assert not is_latency_bound(1001, Interpolated((100.0, 1000.0), (1.0, 2.0)))
    assert doctest.testmod(reasons_module).failed == 0


def test_a_straggler_is_named_in_the_step_that_is_shown() -> None:
    """The middle step: rank 1 came 4 s late to the second group, others to other steps."""
    steps = [step((1, 1, 2), (10, 10, 10 + exposed)) for exposed in (1.0, 9.0, 5.0)]
    fastest = [[Fastest(1.0, 0), Fastest(needed, rank)] for needed, rank in ((1, 0), (2, 2))]
    fastest.append([Fastest(1.0, 0), Fastest(1.0, 1)])
    hidden, last = report(*steps, n_groups=2, fastest=fastest).rows
    assert (hidden.reason, hidden.waited_s, hidden.waited_for) == ("hidden", 0.0, None)
    assert (last.reason, last.waited_s, last.waited_for) == ("straggler", 4.0, 1)
    assert last.why == "straggler: waited 4000.0 ms for rank 1"


def test_without_other_ranks_the_fastest_step_is_what_the_network_needs() -> None:
    """The second group takes 1, 2 and 3 s."""
    steps = [step((9, 9, 11), (11, 11, 11 + seconds)) for seconds in (1.0, 3.0, 2.0)]
    first, last = report(*steps, n_groups=2).rows
    assert (first.reason, first.waited_s) == ("ready too late to hide", 0.0)
    assert (last.reason, last.waited_s, last.waited_for) == ("straggler", 1.0, None)
    assert last.why == "straggler: 1000.0 ms over its fastest step"


def test_a_late_rank_that_found_the_link_busy_kept_nobody_waiting() -> None:
    """It came at 9, the link was free at 11, and so 2 s of the last group's 3 are no waiting."""
    (_, last) = report(
        step((8, 8, 11), (8, 8, 14)), n_groups=2, fastest=[[SLOW, Fastest(5.0, rank=1)]]
    ).rows
    assert (last.reason, last.waited_s) == ("last group", 0.0)


def full_report() -> OverlapReport:
    return report(
        step((2, 2, 5), (10, 10, 13)),
        n_groups=2,
        predicted=step((2, 2, 4), (9, 9, 12), backward_s=9.0),
        tried=[TriedPlan("ddp", 1, 0.5, 2.0, kept=False), TriedPlan("optimal", 2, 0.25, 1.0, True)],
    )


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    made = full_report()
    assert made.predicted is not None
    # 5 before backward, 9 of it, 3 after it
    assert made.predicted._asdict() == {"step_s": 17.0, "comm_s": 5.0, "exposed_s": 3.0}
    assert [(r.predicted_finish_s, r.predicted_exposed_s) for r in made.rows] == [(4, 0), (12, 3)]
    lines = str(made).splitlines()
    assert lines[1].startswith("predicted 17000.0 ms = forward and backward 14000.0 + exposed")
    assert lines[2].split("ms")[-1].split() == ["predicted", "why"]
    assert lines[4].split()[5:9] == ["13000.00", "12000.00", "3000.00", "3000.00"]
    assert len(lines[2][: lines[2].index("why")]) == lines[4].index("last group")


def test_a_group_that_was_not_predicted_has_a_dash() -> None:
    made = report(step((2, 2, 5), (10, 10, 13)), n_groups=2, predicted=step((2, 2, 4)))
    assert made.rows[1].predicted_finish_s is None
    assert str(made).splitlines()[-1].split()[5:9] == ["13000.00", "-", "3000.00", "-"]


def test_tried_plans_are_a_table_below() -> None:
    *_, header, first, second = str(full_report()).splitlines()
    assert header.split("  ")[0] == "tried plan"
    assert first.split() == ["ddp", "1", "500.00", "2000.00"]
    assert second.split() == ["optimal", "2", "250.00", "1000.00", "kept"]
    assert "tried" not in str(report(step((2, 2, 5)), n_groups=1))


def test_the_dict_of_a_full_report_is_json() -> None:
    content = json.loads(json.dumps(full_report().to_dict()))
    assert content["predicted"] == {"step_s": 17.0, "comm_s": 5.0, "exposed_s": 3.0}
    assert content["tried"][1]["planner"] == "optimal"
    assert content["rows"][1]["predicted_exposed_s"] == 3.0
    assert report(step((2, 2, 5)), n_groups=1).to_dict()["predicted"] is None
