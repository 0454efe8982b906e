from __future__ import annotations

import doctest

import pytest

from lightning_gradsched.core import plan as plan_module
from lightning_gradsched.core.plan import GroupPlan, check_plan, ddp, planner_named
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.errors import PlanError

MIB = 2**20


def profile(*params: tuple[str, int] | tuple[str, int, str]) -> BackwardProfile:
    return BackwardProfile(tuple(ParamProfile(*param) for param in params))


def test_doctests() -> None:
    assert doctest.testmod(plan_module).failed == 0


def test_ddp_closes_the_first_group_at_1_mib_and_the_others_at_25() -> None:
    plan = ddp(profile(("a", MIB // 2), ("b", MIB), ("c", 20 * MIB), ("d", 6 * MIB), ("e", 4)))
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
    plan = planner_named(name, group_nbytes=12)(profile(("a", 8), ("b", 8), ("c", 8)))
    assert plan == GroupPlan(name, expected)


@pytest.mark.parametrize("name", ["ddp", "single", "fixed_size", "per_tensor"])
def test_dtypes_never_share_a_group_and_groups_go_by_their_last_member(name: str) -> None:
    mixed = profile(("a", 8), ("h", 4, "bfloat16"), ("b", 8), ("i", 4, "bfloat16"), ("c", 8))
    plan = planner_named(name, group_nbytes=16)(mixed)
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
