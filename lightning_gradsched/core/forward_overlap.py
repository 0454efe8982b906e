"""The planner of steps whose reductions go on into the next forward: priority, pieces, one order.

Gradients of early layers come last and are needed first, so they go ahead of those that can wait,
and large parameters travel in pieces, between which urgent ones fit (Jayarajan et al.: P3, SysML
2019; Peng et al.: ByteScheduler, SOSP 2019). All of it is decided before a step runs: the order is
fixed, and ranks need not talk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import ceil

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan, ddp, mg_wfbp, optimal, per_tensor, single
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.schedule import Action, ReductionSchedule, lower_into_forward
from lightning_gradsched.core.simulate import simulate

NAME = "forward_overlap"
KIB, MIB = 1 << 10, 1 << 20
# What a group holds at most, unless it is one parameter; and what is sent in one message.
CAPS_NBYTES = (64 * KIB, 256 * KIB, 512 * KIB, *(MIB << k for k in range(7)))
PIECES_NBYTES = (MIB, 4 * MIB, 8 * MIB, 16 * MIB)
# So many plans are refined, the best as they are; with more groups it takes long and saves little.
N_REFINED = 3
MOST_REFINED_GROUPS = 128
# What is predicted to have come by this share of backward is taken to be there at its end.
SURELY_HIDDEN_SHARE = 0.9


def step_s(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> float:
    """Seconds of a whole step of ``plan`` whose reductions go on into the next forward."""
    return simulate(lower_into_forward(plan, profile), plan, profile, cost).extent_s()


def lower_as_measured(
    plan: GroupPlan, profile: BackwardProfile, cost: CostModel
) -> ReductionSchedule:
    """As ``lower_into_forward``, but the end of backward waits too for what has long come by then.

    To leave a group open costs the host time for each of its parameters, and gains nothing where
    backward hides it. Without times in ``profile`` nothing is known of that.
    """
    schedule = lower_into_forward(plan, profile)
    own = simulate(schedule, plan, profile, cost).own_transfers()
    until_s = SURELY_HIDDEN_SHARE * profile.backward_s
    come = {n for n in schedule.left_open if own[str(n)][-1].end_s < until_s}
    waits = (Action("W", number) for number in schedule.order if number in come)
    until_gathers = len(schedule.backward) - len(schedule.gathers)
    return replace(
        schedule,
        backward=(
            *schedule.backward[:until_gathers],
            *waits,
            *schedule.backward[until_gathers:],
        ),
        forward=tuple(action for action in schedule.forward if action.group not in come),
    )


def forward_overlap(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    """The plan whose whole step is simulated to be the shortest; of equal ones, of fewest messages.

    Among groups of many sizes, in order of first use; and the groups of the planners that end with
    backward, so that it is never worse than any of those.
    """

    def rank(plan: GroupPlan) -> tuple[float, int]:
        return round(step_s(plan, profile, cost), 9), len(plan.launch_order)

    best = sorted(forward_plans(profile, cost), key=rank)[:N_REFINED]
    refined = [_refined(p, profile, cost) for p in best if len(p.groups) <= MOST_REFINED_GROUPS]
    return min([*best, *refined], key=rank)


def forward_plans(profile: BackwardProfile, cost: CostModel) -> Iterator[GroupPlan]:
    """Plans worth comparing: by size and priority, and those that end with backward."""
    units = [_Unit.of(param) for param in profile.params]
    groupings = [_grouped(units, cap) for cap in CAPS_NBYTES]
    unit_of = {unit.names[0]: unit for unit in units}
    for planner in (ddp, optimal, mg_wfbp, single, per_tensor):
        plan = planner(profile, cost)
        yield replace(plan, planner=NAME)
        groupings.append(tuple(_join(unit_of[name] for name in group) for group in plan.groups))
    for groups in dict.fromkeys(groupings):
        for piece_nbytes in PIECES_NBYTES:
            yield _prioritised(groups, cost, piece_nbytes)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What travels together: its gradients are ready when the last is, needed when the first is."""

    names: tuple[str, ...]
    nbytes: int
    ready_s: float
    needed_s: float
    kind: tuple[str, str]

    @classmethod
    def of(cls, param: ParamProfile) -> _Unit:
        kind = (param.dtype, param.device)
        return cls((param.name,), param.nbytes, param.ready_s, param.needed_s, kind)

    def as_param(self) -> ParamProfile:
        name = self.names[0]
        return ParamProfile(name, self.nbytes, *self.kind, self.ready_s, self.needed_s)


def _join(units: Iterable[_Unit]) -> _Unit:
    units = list(units)
    return _Unit(
        tuple(name for unit in units for name in unit.names),
        sum(unit.nbytes for unit in units),
        max(unit.ready_s for unit in units),
        min(unit.needed_s for unit in units),
        units[0].kind,
    )


def _grouped(units: Sequence[_Unit], cap_nbytes: int) -> tuple[_Unit, ...]:
    """In ready order, up to the cap; what is larger goes alone."""
    groups: list[list[_Unit]] = []
    open_of: dict[tuple[str, str], list[_Unit]] = {}
    for unit in units:
        group = open_of.get(unit.kind, [])
        if group and sum(member.nbytes for member in group) + unit.nbytes <= cap_nbytes:
            group.append(unit)
        else:
            open_of[unit.kind] = [unit]
            groups.append(open_of[unit.kind])
    return tuple(map(_join, groups))


def _prioritised(groups: Sequence[_Unit], cost: CostModel, piece_nbytes: int) -> GroupPlan:
    """``groups`` in the order of a link that always takes what is most urgent.

    Whenever it is free, that is the next piece of the group that the next forward uses first, of
    those that are ready.
    """
    n_pieces = [max(1, ceil(group.nbytes / piece_nbytes)) for group in groups]
    launches = tuple(_by_urgency(groups, n_pieces, cost))
    return GroupPlan(NAME, tuple(group.names for group in groups), launches)


def _by_urgency(groups: Sequence[_Unit], n_pieces: Sequence[int], cost: CostModel) -> Iterator[int]:
    coming = sorted(range(len(groups)), key=lambda i: groups[i].ready_s, reverse=True)
    ready: list[tuple[float, float, int]] = []
    left = list(n_pieces)
    now_s = 0.0
    while coming or ready:
        while coming and (not ready or groups[coming[-1]].ready_s <= now_s):
            number = coming.pop()
            now_s = max(now_s, groups[number].ready_s)
            heappush(ready, (groups[number].needed_s, -groups[number].ready_s, number))
        number = ready[0][-1]
        yield number
        now_s += float(cost.all_reduce_s(groups[number].nbytes / n_pieces[number]))
        left[number] -= 1
        if left[number] == 0:
            heappop(ready)


def _refined(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    """Merge neighbours in ready order, again and again, as long as the step gets shorter.

    A latency saved against a wait for the later gradient: which is more differs along the step.
    """
    unit_of = {param.name: _Unit.of(param) for param in profile.params}
    groups = [_join(unit_of[name] for name in names) for names in plan.groups]
    groups.sort(key=lambda group: group.ready_s)

    def best_of(groups: Sequence[_Unit]) -> tuple[float, GroupPlan]:
        # A group counts as one parameter here: as many fewer to simulate.
        rough = replace(profile, params=tuple(group.as_param() for group in groups))
        plans = [_prioritised(groups, cost, nbytes) for nbytes in PIECES_NBYTES]
        heads = tuple((group.names[0],) for group in groups)
        return min(
            ((step_s(replace(p, groups=heads), rough, cost), p) for p in dict.fromkeys(plans)),
            key=lambda pair: pair[0],
        )

    best_s, best = best_of(groups)
    i = len(groups) - 1
    while i > 0:
        if groups[i - 1].kind == groups[i].kind:
            merged = [*groups[: i - 1], _join(groups[i - 1 : i + 1]), *groups[i + 1 :]]
            merged_s, merged_plan = best_of(merged)
            if merged_s < best_s:
                groups, best_s, best, i = merged, merged_s, merged_plan, len(merged)
        i -= 1
    return best
