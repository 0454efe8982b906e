"""The launch order of a plan's groups and where each is waited for, as printable actions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.errors import PlanError

# Who decides when a group's turn has come: the plan; the ranks while backward runs; or whichever
# of the two the orders that are seen call for.
SCHEDULE_CHOICES = ("static", "negotiated", "auto")


class Action(NamedTuple):
    """``R3``: launch the reduction of group 3. ``W3``: wait for it."""

    kind: Literal["R", "W"]
    group: int

    def __str__(self) -> str:
        return f"{self.kind}{self.group}"


@dataclass(frozen=True, slots=True)
class ReductionSchedule:
    """Actions of one backward: launches while it runs, waits when it has ended.

    >>> schedule = ReductionSchedule.parse("R0 R1 W0 W1")
    >>> schedule.launches
    (0, 1)
    >>> str(schedule)
    'R0 R1 W0 W1'
    """

    backward: tuple[Action, ...]

    def __post_init__(self) -> None:
        launches, waits = self._groups("R"), self._groups("W")
        if sorted(launches) != list(range(len(launches))) or sorted(launches) != sorted(waits):
            raise PlanError(f"expected one R and one W for each of groups 0, 1, …; got {self}")
        for group in launches:
            if self.backward.index(Action("W", group)) < self.backward.index(Action("R", group)):
                raise PlanError(f"expected R{group} before W{group}, got {self}")

    def _groups(self, kind: str) -> tuple[int, ...]:
        return tuple(action.group for action in self.backward if action.kind == kind)

    @property
    def launches(self) -> tuple[int, ...]:
        """Groups in the order in which every rank launches them."""
        return self._groups("R")

    @property
    def waits(self) -> tuple[int, ...]:
        """Groups in the order in which they are waited for."""
        return self._groups("W")

    def __str__(self) -> str:
        return " ".join(map(str, self.backward))

    @classmethod
    def parse(cls, text: str) -> ReductionSchedule:
        """Read what ``str`` prints. Raises ``PlanError`` at the first word that is no action."""
        return cls(tuple(map(_parse_action, text.split())))


def _parse_action(word: str) -> Action:
    match = re.fullmatch(r"([RW])(\d+)", word)
    if match is None:
        raise PlanError(f"expected an action such as R0 or W0, got {word!r}")
    return Action("R" if match[1] == "R" else "W", int(match[2]))


def lower(plan: GroupPlan) -> ReductionSchedule:
    """Launch the groups in the plan's order, wait for all of them, in that order, at the end."""
    groups = range(len(plan.groups))
    return ReductionSchedule(
        (*(Action("R", group) for group in groups), *(Action("W", group) for group in groups))
    )


class Verdict(Enum):
    """What the orders in which groups filled up say of a static schedule."""

    KEEP = auto()  # groups fill in the order in which they are launched, or nearly always
    REPLAN = auto()  # they fill in another order, the same on all ranks
    NEGOTIATE = auto()  # they fill in an order that differs by rank: none is right for all


class FillOrder(NamedTuple):
    """Of one step, over all ranks. ``stalled``: on some rank a full group waited for its turn;
    ``alike``: on all ranks groups filled up in the same order."""

    stalled: bool
    alike: bool


def judge(steps: Iterable[FillOrder]) -> Verdict:
    """Half of the steps must speak against the static order: a rare branch is no reason to change.

    >>> judge([FillOrder(stalled=True, alike=False), FillOrder(stalled=False, alike=False)]).name
    'NEGOTIATE'
    >>> judge([FillOrder(stalled=True, alike=True)] * 3).name
    'REPLAN'
    >>> judge([FillOrder(stalled=False, alike=False)] * 3).name
    'KEEP'
    """
    steps = list(steps)
    stalled = [step for step in steps if step.stalled]
    apart = sum(not step.alike for step in stalled)
    if 2 * apart >= len(steps):
        return Verdict.NEGOTIATE
    return Verdict.REPLAN if 2 * len(stalled) >= len(steps) else Verdict.KEEP
