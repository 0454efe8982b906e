"""Planners: a backward profile in, groups of parameters in launch order out.

A planner is a plain function ``BackwardProfile -> GroupPlan``. All four here are one packing rule
under different caps: walk the ready order, close a group when it has reached its cap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from math import inf

from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.errors import PlanError

DDP_FIRST_CAP_NBYTES = 1 << 20
DDP_CAP_NBYTES = 25 << 20

PLANNER_NAMES = ("ddp", "fixed_size", "single", "per_tensor")


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Groups of qualified parameter names, in launch order; ``planner`` says who decided."""

    planner: str
    groups: tuple[tuple[str, ...], ...]


Planner = Callable[[BackwardProfile], GroupPlan]


def ddp(profile: BackwardProfile) -> GroupPlan:
    """DDP's caps: 1 MiB for the first group, so that it leaves early, then 25 MiB."""
    return _pack("ddp", profile, lambda: chain([DDP_FIRST_CAP_NBYTES], repeat(DDP_CAP_NBYTES)))


def fixed_size(profile: BackwardProfile, *, nbytes: int) -> GroupPlan:
    """Groups that close on reaching ``nbytes``."""
    return _pack("fixed_size", profile, lambda: repeat(nbytes))


def single(profile: BackwardProfile) -> GroupPlan:
    """One group (one for each dtype and device)."""
    return _pack("single", profile, lambda: repeat(inf))


def per_tensor(profile: BackwardProfile) -> GroupPlan:
    """One group a parameter.

    >>> from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
    >>> per_tensor(BackwardProfile((ParamProfile("head.bias", 4), ParamProfile("w", 64)))).groups
    (('head.bias',), ('w',))
    """
    return _pack("per_tensor", profile, lambda: repeat(0))


def planner_named(name: str, *, group_nbytes: int) -> Planner:
    """The planner that ``GradSchedConfig.planner`` names."""
    planners: dict[str, Planner] = {
        "ddp": ddp,
        "fixed_size": partial(fixed_size, nbytes=group_nbytes),
        "single": single,
        "per_tensor": per_tensor,
    }
    return planners[name]


def check_plan(plan: GroupPlan, profile: BackwardProfile) -> None:
    """Raise ``PlanError`` unless each parameter is in one group, of one dtype and device."""
    planned = Counter(chain.from_iterable(plan.groups))
    expected = {p.name for p in profile.params}
    _refuse(plan, "lacks", expected - planned.keys())
    _refuse(plan, "has unknown", planned.keys() - expected)
    _refuse(plan, "repeats", {name for name, count in planned.items() if count > 1})
    kind = {p.name: (p.dtype, p.device) for p in profile.params}
    for number, group in enumerate(plan.groups):
        if len({kind[name] for name in group}) != 1:
            raise PlanError(
                f"plan {plan.planner!r}: group {number} must hold one dtype and device,"
                f" got {[(name, *kind[name]) for name in group]}"
            )


def _refuse(plan: GroupPlan, fault: str, names: Iterable[str]) -> None:
    if listed := sorted(names):
        raise PlanError(
            f"plan {plan.planner!r}: expected each parameter in exactly one group;"
            f" it {fault} {listed}"
        )


@dataclass(slots=True)
class _OpenGroup:
    cap_nbytes: float
    nbytes: int = 0
    members: list[int] = field(default_factory=list)  # positions in ready order

    def add(self, position: int, nbytes: int) -> None:
        self.members.append(position)
        self.nbytes += nbytes


def _pack(planner: str, profile: BackwardProfile, caps: Callable[[], Iterator[float]]) -> GroupPlan:
    """Close a group on reaching its cap, as DDP does: caps run anew for each dtype and device.

    A group launches when its last member is ready, so groups are ordered by their last member.
    """
    caps_of: dict[tuple[str, str], Iterator[float]] = {}
    filling: dict[tuple[str, str], _OpenGroup] = {}
    groups: list[_OpenGroup] = []
    for position, param in enumerate(profile.params):
        kind = (param.dtype, param.device)
        if kind not in filling:
            filling[kind] = _OpenGroup(next(caps_of.setdefault(kind, caps())))
            groups.append(filling[kind])
        group = filling[kind]
        group.add(position, param.nbytes)
        if group.nbytes >= group.cap_nbytes:
            del filling[kind]
    groups.sort(key=lambda group: group.members[-1])
    return GroupPlan(
        planner, tuple(tuple(profile.params[i].name for i in g.members) for g in groups)
    )
