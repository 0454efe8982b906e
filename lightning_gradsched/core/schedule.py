"""The launch order of a plan's groups and where each is waited for, as printable actions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.errors import PlanError


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
