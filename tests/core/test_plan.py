from __future__ import annotations

import doctest
import random
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from lightning_gradsched.core import plan as plan_module
from lightning_gradsched.core.cost import AlphaBeta, CostModel, Interpolated
from lightning_gradsched.core.plan import (
    PLANNER_NAMES,
    GroupPlan,
    check_plan,
    ddp,
    mg_wfbp,
    optimal,
    planner_named,
)
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.errors import PlanError

MIB = 2**20
ANY_COST = AlphaBeta(alpha_s=1.0, beta_s_per_byte=0.1)


def profile(*params: tuple[str, int] | tuple[str, int, str]) -> BackwardProfile:
    return BackwardProfile(tuple(ParamProfile(*param) for param in params))


def test_doctests() -> None:
    assert doctest.testmod(plan_module).failed == 0


def test_ddp_closes_the_first_group_at_1_mib_and_the_others_at_25() -> None:
    sizes = ("a", MIB // 2), ("b", MIB), ("c", 20 * MIB), ("d", 6 * MIB), ("e", 4)
    plan = ddp(profile(*sizes), ANY_COST)
    assert plan.groups == (("a", "b"), ("c", "d"), ("e",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("single", (("a", "b", "c"),)),
        ("per_tensor", (("a",), ("b",), ("c",))),
        ("fixed_size", (("a", "b"), ("c",))),
    ],
)
def test_planners(name: str, expected: tuple[tuple[str, ...], ...]) -> None:
    plan = planner_named(name, group_nbytes=12)(profile(("a", 8), ("b", 8), ("c", 8)), ANY_COST)
    assert plan == GroupPlan(name, expected)


@pytest.mark.parametrize("name", PLANNER_NAMES)
def test_dtypes_never_share_a_group_and_groups_go_by_their_last_member(name: str) -> None:
    mixed = profile(("a", 8), ("h", 4, "bfloat16"), ("b", 8), ("i", 4, "bfloat16"), ("c", 8))
    plan = planner_named(name, group_nbytes=16)(mixed, ANY_COST)
    check_plan(plan, mixed)
    order = [param.name for param in mixed.params]
    last = [order.index(group[-1]) for group in plan.groups]
    assert last == sorted(last)
    assert all(list(group) == sorted(group, key=order.index) for group in plan.groups)


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        ((("a",),), r"lacks \['b'\]"),
        ((("a",), ("b", "a")), r"repeats \['a'\]"),
        ((("a", "b", "x"),), r"has unknown \['x'\]"),
    ],
)
def test_a_plan_that_is_no_partition_is_refused(
    groups: tuple[tuple[str, ...], ...], fault: str
) -> None:
    with pytest.raises(PlanError, match=fault):
        check_plan(GroupPlan("mine", groups), profile(("a", 4), ("b", 4)))


def test_a_group_of_two_dtypes_is_refused() -> None:
    with pytest.raises(PlanError, match="one dtype and device"):
        check_plan(GroupPlan("mine", (("a", "h"),)), profile(("a", 4), ("h", 2, "bfloat16")))


def random_profile(seed: int, n: int) -> BackwardProfile:
    rng = random.Random(seed)
    ready = sorted(rng.uniform(0, 10) for _ in range(n))
    return BackwardProfile(
        tuple(ParamProfile(f"p{i}", rng.randint(1, 100), ready_s=t) for i, t in enumerate(ready)),
        backward_s=10.0,
    )


def finish_s(plan: GroupPlan, given: BackwardProfile, cost: CostModel) -> float:
    """When the last group has arrived, group after group; written apart from the planner."""
    params = {param.name: param for param in given.params}
    free_s = 0.0
    for group in plan.groups:
        nbytes = sum(params[name].nbytes for name in group)
        ready_s = max(params[name].ready_s for name in group)
        free_s = max(free_s, ready_s) + cost.all_reduce_s(float(nbytes))
    return free_s


def all_plans(given: BackwardProfile) -> Iterator[GroupPlan]:
    names = [param.name for param in given.params]
    for is_cut in product([False, True], repeat=len(names) - 1):
        ends = [i + 1 for i, cut in enumerate(is_cut) if cut] + [len(names)]
        starts = [0, *ends[:-1]]
        yield GroupPlan("any", tuple(tuple(names[a:b]) for a, b in zip(starts, ends, strict=True)))


COSTS = [
    AlphaBeta(alpha_s=0.5, beta_s_per_byte=0.01),
    AlphaBeta(alpha_s=0.01, beta_s_per_byte=0.05),
    AlphaBeta(alpha_s=3.0, beta_s_per_byte=0.0),
    Interpolated((1.0, 50.0, 400.0), (0.4, 0.5, 5.0)),
]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(8))
def test_optimal_is_as_good_as_the_best_of_all_plans(seed: int, cost: CostModel) -> None:
    given = random_profile(seed, n=3 + seed)
    best_s = min(finish_s(plan, given, cost) for plan in all_plans(given))
    assert finish_s(optimal(given, cost), given, cost) == pytest.approx(best_s, rel=1e-12)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(4))
def test_optimal_is_never_behind_another_planner(seed: int, cost: CostModel) -> None:
    given = random_profile(seed, n=60)
    best_s = finish_s(optimal(given, cost), given, cost)
    for name in PLANNER_NAMES:
        plan = planner_named(name, group_nbytes=200)(given, cost)
        check_plan(plan, given)
        assert [p.name for p in given.params] == [n for group in plan.groups for n in group]
        assert best_s <= finish_s(plan, given, cost) * (1 + 1e-12), name


def test_mg_wfbp_merges_what_could_not_start_or_would_save_less_than_a_latency() -> None:
    ready = {"a": 0.0, "b": 1.0, "c": 9.0, "d": 13.5}
    given = BackwardProfile(tuple(ParamProfile(n, 1, ready_s=t) for n, t in ready.items()))
    plan = mg_wfbp(given, AlphaBeta(alpha_s=2.0, beta_s_per_byte=1.0))
    # b comes within a latency of a; c long after the link is free again; d after c's latency.
    assert plan.groups == (("a", "b"), ("c",), ("d",))


def test_one_group_where_latency_is_all_and_a_short_last_one_where_it_is_none() -> None:
    given = random_profile(0, n=8)
    assert len(optimal(given, AlphaBeta(1000.0, 0.0)).groups) == 1
    assert optimal(given, AlphaBeta(0.0, 1e-4)).groups[-1] == ("p7",)


def test_a_thousand_parameters_are_planned_in_a_thousand_rows() -> None:
    """Work is counted and not timed: one call of the cost model a gradient, over an array."""
    calls = []

    class Counting:
        def all_reduce_s(self, nbytes: Any) -> Any:
            calls.append(len(nbytes))
            return 1.0 + 0.01 * nbytes

    check_plan(optimal(random_profile(1, 1000), Counting()), random_profile(1, 1000))
    assert calls == list(range(1, 1001))


def test_a_plan_in_halves_that_ends_with_backward_is_refused() -> None:
    plan = GroupPlan("mine", (("a",),), owners=((0,),), n_ranks=2, ends_with_backward=True)
    with pytest.raises(PlanError, match="expected no owners where it ends with backward"):
        check_plan(plan, profile(("a", 4)))
