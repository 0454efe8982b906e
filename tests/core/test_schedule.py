from __future__ import annotations

import doctest

import pytest

from lightning_gradsched.core import schedule as schedule_module
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule, lower
from lightning_gradsched.errors import PlanError


def test_doctests() -> None:
    assert doctest.testmod(schedule_module).failed == 0


def test_lower_launches_in_plan_order_and_waits_at_the_end() -> None:
    schedule = lower(GroupPlan("mine", (("a",), ("b",), ("c",))))
    assert str(schedule) == "R0 R1 R2 W0 W1 W2"
    assert ReductionSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("W0 R0", "expected R0 before W0"),
        ("R0 R1 W0", "one R and one W"),
        ("R0 W0 R1", "one R and one W"),
        ("R1 W1", "one R and one W"),
        ("R0 X0", "expected an action such as R0 or W0, got 'X0'"),
    ],
)
def test_invalid_schedules_are_refused(text: str, fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        ReductionSchedule.parse(text)
