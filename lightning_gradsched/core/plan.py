"""Planners: a backward profile and a cost model in, groups in launch order out.

A planner is a plain function ``(BackwardProfile, CostModel) -> GroupPlan``. Four of them are one
packing rule under different caps: walk the ready order, close a group when it has reached its cap.
``optimal`` and ``mg_wfbp`` weigh waiting for more gradients against another collective's latency.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat, zip_longest
from math import inf

import numpy as np

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.errors import PlanError

DDP_FIRST_CAP_NBYTES = 1 << 20
DDP_CAP_NBYTES = 25 << 20

# Those that need no measurement, and those that plan from one.
UNMEASURED_PLANNERS = ("ddp", "fixed_size", "single", "per_tensor")
MEASURED_PLANNERS = ("optimal", "mg_wfbp")
PLANNER_NAMES = (*UNMEASURED_PLANNERS, *MEASURED_PLANNERS)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Groups of qualified parameter names, in launch order; ``planner`` says who decided.

    ``launches``: another launch order of the groups, by their numbers; a group that it names k
    times travels in k pieces alike. Empty: each group once, in order.
    ``owners``: for each group the ranks that its parameters belong to, by which they are summed and
    then sent to all; of a group that is all-reduced, none. Empty: all are all-reduced. ``n_ranks``:
    among so many, where there are owners.
    ``ends_with_backward``: nothing of it is left to the next forward, where others leave something.

    >>> GroupPlan("halves", (("a",), ("b", "c"))).launch_order
    (0, 1)
    >>> GroupPlan("halves", (("a",), ("b", "c")), launches=(1, 0, 1)).n_pieces(1)
    2
    """

    planner: str
    groups: tuple[tuple[str, ...], ...]
    launches: tuple[int, ...] = ()
    owners: tuple[tuple[int, ...], ...] = ()
    n_ranks: int = 1
    ends_with_backward: bool = False

    @property
    def launch_order(self) -> tuple[int, ...]:
        """The number of each group, once for each of its pieces."""
        return self.launches or tuple(range(len(self.groups)))

    def n_pieces(self, group: int) -> int:
        return self.launch_order.count(group)

    @property
    def n_messages(self) -> int:
        """A piece is one, and a group in halves two."""
        return len(self.launch_order) + sum(map(bool, self.owners))

    def owners_of(self, group: int) -> tuple[int, ...]:
        """The rank of each of its parameters; empty where it is all-reduced."""
        return self.owners[group] if self.owners else ()


Planner = Callable[[BackwardProfile, CostModel], GroupPlan]


def ddp(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    """DDP's caps: 1 MiB for the first group, so that it leaves early, then 25 MiB."""
    return _pack("ddp", profile, lambda: chain([DDP_FIRST_CAP_NBYTES], repeat(DDP_CAP_NBYTES)))


def fixed_size(profile: BackwardProfile, _cost: CostModel, *, nbytes: int) -> GroupPlan:
    """Groups that close on reaching ``nbytes``."""
    return _pack("fixed_size", profile, lambda: repeat(nbytes))


def single(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    """One group (one for each dtype and device)."""
    return _pack("single", profile, lambda: repeat(inf))


def per_tensor(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    """One group a parameter.

    >>> from lightning_gradsched.core.cost import AlphaBeta
    >>> profile = BackwardProfile((ParamProfile("head.bias", 4), ParamProfile("w", 64)))
    >>> per_tensor(profile, AlphaBeta(0.0, 0.0)).groups
    (('head.bias',), ('w',))
    """
    return _pack("per_tensor", profile, lambda: repeat(0))


def optimal(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    """The grouping whose last reduction ends soonest, exactly, by dynamic programming.

    With groups sent one at a time in ready order, the first j gradients are done at the earliest at
    ``finish(j) = min over i < j of max(finish(i), ready(j)) + cost(bytes of i..j)``: it never pays
    to have had the link free later. Of equal plans it takes one of few groups. O(n^2) over NumPy
    rows. Exact for one dtype and device; several are each planned as if alone on the link.
    """
    return _by_kind("optimal", profile, partial(_optimal_cuts, cost=cost))


def mg_wfbp(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    """MG-WFBP's merge (Shi, Chu, Li: INFOCOM 2019, arXiv 1811.11141): greedy, O(n).

    A gradient joins the group before it where that could not have started to move yet, or would
    have saved less than a latency by starting sooner.
    """
    return _by_kind("mg_wfbp", profile, partial(_merged_cuts, cost=cost))


def planner_named(name: str, *, group_nbytes: int) -> Planner:
    """The planner that ``GradSchedConfig.planner`` names."""
    planners: dict[str, Planner] = {
        "ddp": ddp,
        "fixed_size": partial(fixed_size, nbytes=group_nbytes),
        "single": single,
        "per_tensor": per_tensor,
        "optimal": optimal,
        "mg_wfbp": mg_wfbp,
    }
    return planners[name]


def check_plan(plan: GroupPlan, profile: BackwardProfile) -> None:
    """Raise ``PlanError`` unless each parameter is in one group, of one dtype and device.

    And unless the launch order names each group.
    """
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
    owned = zip_longest(plan.groups, plan.owners) if plan.owners else ()
    if any(None in (names, ranks) or len(ranks) not in (0, len(names)) for names, ranks in owned):
        raise PlanError(
            f"plan {plan.planner!r}: expected an owner for each parameter of a group, or none,"
            f" got {plan.owners}"
        )
    if plan.ends_with_backward and any(plan.owners):
        raise PlanError(
            f"plan {plan.planner!r}: expected no owners where it ends with backward: second halves"
            " are for the next forward"
        )
    if set(plan.launch_order) != set(range(len(plan.groups))):
        raise PlanError(
            f"plan {plan.planner!r}: expected launches of groups 0 to {len(plan.groups) - 1}, each"
            f" once or more, got {plan.launches}"
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


# The gradients of one kind -> where groups end: positions, increasing, the last being their number.
Cuts = Callable[[Sequence[ParamProfile]], Iterable[int]]


def _by_kind(planner: str, profile: BackwardProfile, cuts: Cuts) -> GroupPlan:
    """Cut each dtype and device for itself; groups launch as their last members get ready."""
    position = {param.name: i for i, param in enumerate(profile.params)}
    kinds: dict[tuple[str, str], list[ParamProfile]] = defaultdict(list)
    for param in profile.params:
        kinds[param.dtype, param.device].append(param)
    groups: list[tuple[str, ...]] = []
    for params in kinds.values():
        start = 0
        for end in cuts(params):
            groups.append(tuple(param.name for param in params[start:end]))
            start = end
    return GroupPlan(planner, tuple(sorted(groups, key=lambda group: position[group[-1]])))


def _optimal_cuts(params: Sequence[ParamProfile], *, cost: CostModel) -> list[int]:
    n = len(params)
    total_nbytes = np.concatenate([[0.0], np.cumsum([float(p.nbytes) for p in params])])
    finish_s = np.zeros(n + 1)
    start_of_last = [0] * (n + 1)
    for end in range(1, n + 1):
        transfer_s = cost.all_reduce_s(total_nbytes[end] - total_nbytes[:end])
        done_s = np.maximum(finish_s[:end], params[end - 1].ready_s) + transfer_s
        start_of_last[end] = int(np.argmin(done_s))
        finish_s[end] = done_s[start_of_last[end]]
    cuts = [n]
    while start_of_last[cuts[-1]] > 0:
        cuts.append(start_of_last[cuts[-1]])
    return cuts[::-1]


def _merged_cuts(params: Sequence[ParamProfile], *, cost: CostModel) -> Iterator[int]:
    latency_s = cost.all_reduce_s(0.0)
    link_free_s, nbytes = 0.0, 0
    for i, param in enumerate(params):
        nbytes += param.nbytes
        start_s = max(link_free_s, param.ready_s)
        if i + 1 == len(params) or params[i + 1].ready_s >= start_s + latency_s:
            yield i + 1
            link_free_s, nbytes = start_s + cost.all_reduce_s(float(nbytes)), 0
