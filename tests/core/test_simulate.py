from __future__ import annotations

import doctest

import pytest

import lightning_gradsched.core.simulate as simulate_module
from lightning_gradsched.core.cost import AlphaBeta
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.report import GroupInfo, OverlapReport
from lightning_gradsched.core.schedule import ReductionSchedule, lower
from lightning_gradsched.core.simulate import simulate
from lightning_gradsched.core.timeline import COMMUNICATION, QUEUE, Span
from lightning_gradsched.errors import PlanError

# One second to start and one a byte: hand arithmetic stays in whole seconds.
COST = AlphaBeta(alpha_s=1.0, beta_s_per_byte=1.0)


def profile(*ready_and_nbytes: tuple[float, int], backward_s: float = 10.0) -> BackwardProfile:
    params = (ParamProfile(str(i), n, ready_s=s) for i, (s, n) in enumerate(ready_and_nbytes))
    return BackwardProfile(tuple(params), forward_s=5.0, backward_s=backward_s)


def plan(*groups: str) -> GroupPlan:
    """Each group as a string of one-digit names."""
    return GroupPlan("test", tuple(tuple(group) for group in groups))


def sent(
    backward: BackwardProfile, groups: GroupPlan, schedule: str | None = None
) -> list[tuple[str, float, float, float]]:
    """Each group as (label, ready, launched, finished)."""
    actions = lower(groups) if schedule is None else ReductionSchedule.parse(schedule)
    spans = simulate(actions, groups, backward, COST).spans
    queued = [s for s in spans if s.track == QUEUE]
    moved = [s for s in spans if s.track == COMMUNICATION]
    assert [s.label for s in queued] == [s.label for s in moved]
    assert [s.end_s for s in queued] == [s.start_s for s in moved]
    return [(q.label, q.start_s, m.start_s, m.end_s) for q, m in zip(queued, moved, strict=True)]


def test_doctests() -> None:
    assert doctest.testmod(simulate_module).failed == 0


def test_a_link_that_is_free_is_taken_at_once() -> None:
    backward = profile((1, 2), (6, 1))
    assert sent(backward, plan("0", "1")) == [("0", 1, 1, 4), ("1", 6, 6, 8)]


def test_a_group_waits_for_its_last_member() -> None:
    assert sent(profile((1, 2), (6, 1)), plan("01")) == [("0", 6, 6, 10)]


def test_a_group_waits_for_the_link() -> None:
    backward = profile((1, 7), (2, 1), (3, 1))
    assert sent(backward, plan("0", "1", "2")) == [
        ("0", 1, 1, 9),
        ("1", 2, 2, 11),
        ("2", 3, 3, 13),
    ]


def test_a_group_waits_for_its_turn() -> None:
    backward = profile((1, 1), (8, 1))
    assert sent(backward, plan("0", "1"), "R1 R0 W1 W0") == [("1", 8, 8, 10), ("0", 1, 8, 12)]


def test_members_may_come_in_any_order() -> None:
    assert sent(profile((1, 1), (3, 1), (4, 1)), plan("20", "1")) == [
        ("0", 4, 4, 7),
        ("1", 3, 4, 9),
    ]


def test_no_parameters_no_communication() -> None:
    timeline = simulate(lower(plan()), plan(), profile(), COST)
    assert timeline.spans == (
        Span("compute", "optimizer, data, forward", -5.0, 0.0),
        Span("compute", "backward", 0.0, 10.0),
    )


def test_exposed_time_is_what_backward_does_not_hide() -> None:
    groups = plan("0", "1")
    timeline = simulate(lower(groups), groups, profile((8, 4), (10, 2)), COST)
    # 8..13 and 13..16, backward ends at 10
    assert (timeline.busy_s(COMMUNICATION), timeline.exposed_s()) == (8.0, 6.0)


def report(backward: BackwardProfile, groups: GroupPlan, schedule: str) -> OverlapReport:
    actions = ReductionSchedule.parse(schedule)
    timeline = simulate(actions, groups, backward, COST)
    infos = [GroupInfo(str(i), groups.groups[i], 1) for i in actions.launches]
    return OverlapReport.of([timeline], infos)


def test_the_report_names_the_wait_for_the_link() -> None:
    # 1..3, 2..12 behind it, 4..14 behind that, 9..16: backward ends at 10
    backward = profile((1, 1), (2, 8), (4, 1), (9, 1))
    result = report(backward, plan("0", "1", "2", "3"), "R0 R1 R2 R3 W0 W1 W2 W3")
    assert (result.step_s, result.compute_s, result.exposed_s) == (21.0, 15.0, 6.0)
    assert [row.exposed_s for row in result.rows] == [0.0, 2.0, 2.0, 2.0]
    assert [row.reason for row in result.rows[::2]] == ["hidden", "waited for the link"]


def test_the_report_names_the_wait_for_order() -> None:
    result = report(profile((1, 1), (8, 1)), plan("0", "1"), "R1 R0 W0 W1")
    assert [(row.label, row.exposed_s, row.reason) for row in result.rows] == [
        ("1", 0.0, "hidden"),
        ("0", 2.0, "waited for order"),
    ]


def test_a_plan_of_another_net_is_named() -> None:
    with pytest.raises(PlanError, match=r"lacks \['1'\]"):
        simulate(lower(plan("0")), plan("0"), profile((1, 1), (2, 1)), COST)


def test_a_schedule_of_another_plan_is_named() -> None:
    with pytest.raises(PlanError, match=r"schedule of the 2 groups of plan 'test', got one of 1"):
        simulate(lower(plan("01")), plan("0", "1"), profile((1, 1), (2, 1)), COST)
