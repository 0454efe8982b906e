"""The launch order of a plan's groups and where each is waited for, as printable actions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple, cast

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.errors import PlanError

# Who decides when a group's turn has come: the plan; the ranks while backward runs; or whichever
# of the two the orders that are seen call for.
SCHEDULE_CHOICES = ("static", "negotiated", "auto")


class Action(NamedTuple):
    """``R3``: launch the reduction of group 3, or its next piece. ``W3``: wait for all of it.

    ``S3``: launch its first half, in which each parameter is summed by the rank that owns it;
    ``G3``: wait for that, and launch the second, in which owners send the means to all.
    """

    kind: Literal["R", "W", "S", "G"]
    group: int

    def __str__(self) -> str:
        return f"{self.kind}{self.group}"


@dataclass(frozen=True, slots=True)
class ReductionSchedule:
    """Actions of one backward, and what is left for the next forward.

    ``backward``: launches while it runs, waits when it has ended. A group that is launched k times
    travels in k pieces. ``forward``: the groups whose means the next forward waits for, each before
    it first uses one of their parameters.

    >>> schedule = ReductionSchedule.parse("R0 R1 W0 W1")
    >>> schedule.launches
    (0, 1)
    >>> str(schedule)
    'R0 R1 W0 W1'
    >>> ReductionSchedule.parse("R0 R1 R2 R1 W0 | W2 W1").left_open
    (2, 1)

    Groups that travel in halves: all first halves have ended when the second ones begin.

    >>> ReductionSchedule.parse("R0 S1 S2 W0 G2 G1 | W2 W1").gathers
    (2, 1)

    ``lag``: how many backwards before it those were whose groups a backward waits for, 0 or 1.

    >>> ReductionSchedule.parse("R0 R1 W0[-1] W1[-1]").lag
    1
    """

    backward: tuple[Action, ...]
    forward: tuple[Action, ...] = ()
    lag: int = 0

    def __post_init__(self) -> None:
        if any(action.kind != "W" for action in self.forward):
            raise PlanError(f"expected nothing but waits in the next forward, got {self}")
        launches, waits = self.launches, sorted((*self.waits, *self.left_open))
        if waits != list(range(len(waits))) or set(launches) != set(waits):
            raise PlanError(
                f"expected at least one R and one W for each of groups 0, 1, …; got {self}"
            )
        for group in () if self.lag else self.waits:
            if Action("R", group) in self.backward[self.backward.index(Action("W", group)) :]:
                raise PlanError(f"expected R{group} before W{group}, got {self}")
        halves = "".join(action.kind for action in self.backward if action.kind in "RSG")
        if sorted(self._groups("S")) != sorted(self.gathers) or "G" in halves.rstrip("G"):
            raise PlanError(f"expected one G for each S, after all launches, got {self}")

    def _groups(self, kinds: str) -> tuple[int, ...]:
        return tuple(action.group for action in self.backward if action.kind in kinds)

    @property
    def launches(self) -> tuple[int, ...]:
        """Groups in the order in which every rank launches them, once for each piece."""
        return self._groups("RS")

    @property
    def gathers(self) -> tuple[int, ...]:
        """Groups that travel in halves, in the order in which their second halves are launched."""
        return self._groups("G")

    @property
    def order(self) -> tuple[int, ...]:
        """Each group once, in the order in which they are launched first."""
        return tuple(dict.fromkeys(self.launches))

    @property
    def waits(self) -> tuple[int, ...]:
        """Groups in the order in which the end of backward waits for them."""
        return self._groups("W")

    @property
    def left_open(self) -> tuple[int, ...]:
        """Groups that the next forward waits for, in the order in which it is to need them."""
        return tuple(action.group for action in self.forward)

    @property
    def teller(self) -> int:
        """The group that carries what ranks tell one another: the last that backward waits for."""
        return self.waits[-1] if self.forward else self.launches[-1]

    def __str__(self) -> str:
        phases = [self.backward, self.forward] if self.forward else [self.backward]
        before = f"[-{self.lag}]" if self.lag else ""
        return " | ".join(
            " ".join(f"{a}{before if a.kind == 'W' else ''}" for a in phase) for phase in phases
        )

    @classmethod
    def parse(cls, text: str) -> ReductionSchedule:
        """Read what ``str`` prints. Raises ``PlanError`` at the first word that is no action."""
        lag = int("[-1]" in text)
        backward, _, forward = text.replace("[-1]", "").partition("|")
        return cls(
            tuple(map(_parse_action, backward.split())),
            tuple(map(_parse_action, forward.split())),
            lag,
        )


def _parse_action(word: str) -> Action:
    match = re.fullmatch(r"([RWSG])(\d+)", word)
    if match is None:
        raise PlanError(f"expected an action such as R0 or W0, got {word!r}")
    return Action(cast(Literal["R", "W", "S", "G"], match[1]), int(match[2]))


def lower(plan: GroupPlan) -> ReductionSchedule:
    """Launch the groups in the plan's order, wait for all of them, in that order, at the end."""
    launches = [Action("R", group) for group in plan.launch_order]
    waits = [Action("W", group) for group in dict.fromkeys(plan.launch_order)]
    return ReductionSchedule((*launches, *waits))


def lower_with_lag(plan: GroupPlan) -> ReductionSchedule:
    """As ``lower``, but the end of a backward waits for the groups of the backward before."""
    return ReductionSchedule(lower(plan).backward, lag=1)


def lower_into_forward(plan: GroupPlan, profile: BackwardProfile) -> ReductionSchedule:
    """Launch in the plan's order; leave all but one group to the next forward.

    The end of backward waits for the group that is launched completely first: it carries what
    ranks tell one another. The waits of the forward are in the order of its first uses. Groups that
    belong to ranks travel in halves, the second ones in that order too. A plan that ends with
    backward is lowered as by ``lower``.
    """
    order = plan.launch_order
    if not order or plan.ends_with_backward:
        return lower(plan)
    last = {group: turn for turn, group in enumerate(order)}
    first = min(last, key=last.__getitem__)
    needed_s = {param.name: param.needed_s for param in profile.params}
    rest = [group for group in dict.fromkeys(order) if group != first]
    rest.sort(key=lambda group: min(needed_s[name] for name in plan.groups[group]))
    launches = (Action("S" if plan.owners_of(group) else "R", group) for group in order)
    gathers = (Action("G", group) for group in rest if plan.owners_of(group))
    return ReductionSchedule(
        (*launches, Action("W", first), *gathers),
        tuple(Action("W", group) for group in rest),
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
