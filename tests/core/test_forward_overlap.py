from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from benchmarks.tables import TABLES
from lightning_gradsched.core import schedule as schedule_module
from lightning_gradsched.core.bound import bounds
from lightning_gradsched.core.cost import AlphaBeta, CostModel
from lightning_gradsched.core.forward_overlap import (
    forward_overlap,
    lower_as_measured,
    step_s,
)
from lightning_gradsched.core.plan import (
    PLANNER_NAMES,
    GroupPlan,
    check_plan,
    fixed_size,
    planner_named,
)
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.report import BETWEEN, GroupInfo, OverlapReport
from lightning_gradsched.core.schedule import ReductionSchedule, lower, lower_into_forward
from lightning_gradsched.core.simulate import simulate
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.errors import PlanError
from tests.core.test_bound import COSTS, random_profile

ONE = AlphaBeta(0.0, 1.0)
GBIT = AlphaBeta(alpha_s=1e-4, beta_s_per_byte=8e-9)


def net(name: str, ratio: float, cost: CostModel) -> BackwardProfile:
    """A net of the benchmarks whose communication takes ``ratio`` times its compute."""
    table = TABLES[name]()
    compute_s = float(cost.all_reduce_s(table.nbytes)) / ratio
    total = sum(layer.flop for layer in table.layers)
    params, left = [], total
    for i, layer in reversed(list(enumerate(table.layers))):
        left -= layer.flop
        ready_s = compute_s * 2 / 3 * (1 - left / total)
        needed_s = max(0.0, compute_s / 3 * left / total)
        params += [
            ParamProfile(f"{i}.{k}", n * table.dtype.itemsize, ready_s=ready_s, needed_s=needed_s)
            for k, n in enumerate(layer.numels)
        ]
    last_s = max(2 / 3 * compute_s, params[-1].ready_s)
    return BackwardProfile(tuple(params), compute_s / 3, last_s)


def two_layers() -> BackwardProfile:
    """Backward of 4 s brings the head's gradient at 1 s, the stem's at 4 s; then 2 s of forward."""
    head = ParamProfile("head", 4, ready_s=1.0, needed_s=1.5)
    stem = ParamProfile("stem", 1, ready_s=4.0, needed_s=0.5)
    return BackwardProfile((head, stem), forward_s=2.0, backward_s=4.0)


def spans(timeline: Timeline, label: str) -> list[tuple[float, float]]:
    return [(s.start_s, s.end_s) for s in timeline.spans if s.label == label]


def test_doctests() -> None:
    assert doctest.testmod(schedule_module).failed == 0


def test_a_forward_waits_where_it_first_uses_a_group() -> None:
    plan = GroupPlan("test", (("head",), ("stem",)))
    schedule = ReductionSchedule.parse("R0 R1 W0 | W1")
    timeline = simulate(schedule, plan, two_layers(), ONE)
    # The head travels 1..5, which the end of backward waits for; the stem 5..6, needed at 5.5.
    assert spans(timeline, BETWEEN) == [(5.0, 5.5), (6.0, 7.5)]
    assert timeline.extent_s() == 7.5
    assert timeline.exposed_s() == 1.5


def test_a_report_calls_exposed_what_the_forward_waited_for() -> None:
    plan = GroupPlan("test", (("head",), ("stem",)))
    timeline = simulate(ReductionSchedule.parse("R0 R1 W0 | W1"), plan, two_layers(), ONE)
    infos = [GroupInfo("0", ("head",), 4), GroupInfo("1", ("stem",), 1)]
    report = OverlapReport.of([timeline], infos, bounds=bounds(two_layers(), ONE))
    assert (report.step_s, report.compute_s, report.exposed_s) == (7.5, 6.0, 1.5)
    # The head's last second ends backward; of the stem's, 5 to 6, the forward hides a half.
    assert [row.exposed_s for row in report.rows] == [1.0, 0.5]
    assert "no forward and backward take less than 6500.0 ms (this step: x 1.15)" in str(report)


def test_pieces_let_what_is_urgent_through() -> None:
    whole = GroupPlan("whole", (("head",), ("stem",)))
    pieces = GroupPlan("pieces", (("head",), ("stem",)), launches=(0, 0, 1, 0, 0))
    schedule = lower_into_forward(pieces, two_layers())
    assert str(schedule) == "R0 R0 R1 R0 R0 W1 | W0"
    # Two of its four pieces in 1..3, the stem 4..5, the others 5..7; the head is used at 6.5.
    timeline = simulate(schedule, pieces, two_layers(), ONE)
    own = timeline.own_transfers()
    sent = {label: [piece[2:] for piece in pieces] for label, pieces in own.items()}
    assert sent == {"0": [(1, 3), (5, 7)], "1": [(4, 5)]}
    assert timeline.extent_s() == 7.5
    assert step_s(whole, two_layers(), ONE) == 7.5


def test_backward_waits_for_what_has_long_come() -> None:
    thirds = (
        ParamProfile("a", 1, ready_s=1.0, needed_s=3.0),
        ParamProfile("b", 1, ready_s=2.0, needed_s=2.0),
    )
    stem = ParamProfile("stem", 3, ready_s=8.0, needed_s=1.0)
    profile = BackwardProfile((*thirds, stem), forward_s=4.0, backward_s=10.0)
    plan = GroupPlan("test", (("a",), ("b",), ("stem",)))
    # They end at 2, 3 and 11; of a backward of 3 seconds the second ends too near to its end.
    assert str(lower_as_measured(plan, profile, ONE)) == "R0 R1 R2 W0 W1 | W2"
    soon = replace(profile, backward_s=3.0)
    assert str(lower_as_measured(plan, soon, ONE)) == "R0 R1 R2 W0 | W2 W1"
    unmeasured = replace(profile, forward_s=0.0, backward_s=0.0)
    for cost in (ONE, AlphaBeta(0.0, 0.0)):
        assert str(lower_as_measured(plan, unmeasured, cost)) == "R0 R1 R2 W0 | W2 W1"


def test_where_backward_hides_all_nothing_is_left_open() -> None:
    params = (
        ParamProfile("head", 1, ready_s=1.0, needed_s=1.0),
        ParamProfile("stem", 1, ready_s=2.0),
    )
    profile = BackwardProfile(params, forward_s=4.0, backward_s=10.0)
    plan = GroupPlan("test", (("head",), ("stem",)))
    assert lower_as_measured(plan, profile, ONE) == lower(plan)


def test_second_halves_are_left_open() -> None:
    params = tuple(ParamProfile(n, 2, ready_s=i, needed_s=9 - i) for i, n in enumerate("abc"))
    profile = BackwardProfile(params, forward_s=9.0, backward_s=100.0)
    halves = GroupPlan("test", (("a",), ("b",), ("c",)), owners=((), (0,), ()), n_ranks=2)
    assert str(lower_as_measured(halves, profile, ONE)) == "R0 S1 R2 W0 W2 G1 | W1"


@pytest.mark.parametrize("seed", range(20))
def test_what_backward_waits_for_makes_no_step_longer(seed: int) -> None:
    profile = random_profile(seed, 12)
    for cost in COSTS:
        plan = forward_overlap(profile, cost)
        schedule = lower_as_measured(plan, profile, cost)
        assert simulate(schedule, plan, profile, cost).extent_s() == pytest.approx(
            step_s(plan, profile, cost)
        )


def test_a_schedule_reads_what_it_prints() -> None:
    for text in ("R0 R1 W0 W1", "R1 R0 R1 W0 | W1"):
        assert str(ReductionSchedule.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("R0 R1 W0", "one R and one W for each"),
        ("R0 W0 | W0", "one R and one W for each"),
        ("R0 W0 R0", "expected R0 before W0"),
        ("R0 W0 | R1", "nothing but waits"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(text: str, error: str) -> None:
    with pytest.raises(PlanError, match=error):
        ReductionSchedule.parse(text)


def test_launches_name_each_group() -> None:
    plan = GroupPlan("test", (("head",), ("stem",)), launches=(0, 0))
    with pytest.raises(PlanError, match=r"launches of groups 0 to 1, each once or more"):
        check_plan(plan, two_layers())


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(6))
def test_never_worse_than_any_plan_that_ends_with_backward(seed: int, cost: CostModel) -> None:
    profile = random_profile(seed, n=12)
    plan = forward_overlap(profile, cost)
    check_plan(plan, profile)
    for name in PLANNER_NAMES:
        other = planner_named(name, group_nbytes=50)(profile, cost)
        other_s = simulate(lower(other), other, profile, cost).extent_s()
        assert step_s(plan, profile, cost) <= other_s * (1 + 1e-9), name


def test_dtypes_and_devices_never_share_a_group() -> None:
    profile = BackwardProfile(
        tuple(
            ParamProfile(str(i), 8, ("float32", "bfloat16")[i % 2], ready_s=i, needed_s=9 - i)
            for i in range(10)
        ),
        forward_s=10.0,
        backward_s=10.0,
    )
    check_plan(forward_overlap(profile, AlphaBeta(5.0, 0.1)), profile)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_nets_come_near_the_bound_and_past_every_cap(name: str, ratio: float) -> None:
    """On a link of 1 Gbit/s with a tenth of a millisecond of latency."""
    profile = net(name, ratio, GBIT)
    whole_s = step_s(forward_overlap(profile, GBIT), profile, GBIT)
    assert whole_s <= 1.06 * bounds(profile, GBIT).step_s
    for mib in (1, 2, 5, 10, 25, 50):
        plan = fixed_size(profile, GBIT, nbytes=mib << 20)
        ddp_s = simulate(lower(plan), plan, profile, GBIT).extent_s()
        assert whole_s <= ddp_s * (1 + 1e-9)
        assert ratio != 1.0 or ddp_s > 1.15 * whole_s
