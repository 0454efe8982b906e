"""Plans for steps that look at all gradients at once: clipping by norm, GradScaler's check for inf.

Such a step waits for all reductions. Or it lets them travel in halves: in backward each rank sums
the parameters that it owns, whose norms, in one short message, are all that is asked of the
gradients; in the next forward the owners send the means to all (Zhang et al.: DeAR, ICDCS 2023,
arXiv 2302.12445, halves every all-reduce so, there by elements).
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.forward_overlap import step_s
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.schedule import lower
from lightning_gradsched.core.shards import half_nbytes, owners, owners_by_group
from lightning_gradsched.core.simulate import simulate

MIB = 1 << 20
# A half of a group may take so many times what it would if all ranks owned as much of it.
MOST_IMBALANCE = 1.1


def in_halves(plan: GroupPlan, profile: BackwardProfile, n_ranks: int) -> GroupPlan:
    """``plan`` with owners for all groups but the first that is launched, in ready order.

    The first carries what ranks tell one another. No group travels in pieces: all first halves are
    waited for in backward, and the second ones are all there when it has ended. Nothing is halved
    on one rank.
    """
    if n_ranks == 1:
        return plan
    param_of = {param.name: param for param in profile.params}
    members = sorted(
        ([param_of[name] for name in names] for names in plan.groups),
        key=lambda params: max(param.ready_s for param in params),
    )
    shared = [
        group if i and all(map(_can_be_owned, group)) else [] for i, group in enumerate(members)
    ]
    ranks = owners_by_group([[param.nbytes for param in group] for group in shared], n_ranks)
    groups = tuple(tuple(param.name for param in group) for group in members)
    return GroupPlan(f"{plan.planner} in halves", groups, owners=tuple(ranks), n_ranks=n_ranks)


def balanced(profile: BackwardProfile, n_ranks: int, least_nbytes: int) -> GroupPlan:
    """Groups in ready order that close when they hold so much, and ranks own about as much of each.

    As a half takes as long as the rank that owns most of it.

    >>> params = [ParamProfile(name, nbytes) for name, nbytes in zip("abcd", [1, 9, 8, 2])]
    >>> balanced(BackwardProfile(tuple(params)), n_ranks=2, least_nbytes=4).groups
    (('a', 'b', 'c'), ('d',))
    """
    filling: dict[tuple[str, str], list[ParamProfile]] = {}
    groups: list[tuple[str, ...]] = []
    for param in profile.params:
        kind = (param.dtype, param.device)
        group = filling.setdefault(kind, [])
        group.append(param)
        nbytes = [member.nbytes for member in group]
        if sum(nbytes) >= least_nbytes and _is_balanced(nbytes, n_ranks):
            groups.append(tuple(member.name for member in filling.pop(kind)))
    rest = [tuple(member.name for member in group) for group in filling.values()]
    return GroupPlan(f"balanced from {least_nbytes / MIB:g} MiB", (*groups, *rest))


def _is_balanced(nbytes: Sequence[int], n_ranks: int) -> bool:
    half = half_nbytes(nbytes, owners(nbytes, [0] * n_ranks), n_ranks)
    return half <= MOST_IMBALANCE * sum(nbytes) / 2


def faster_with_norms(
    plan: GroupPlan, profile: BackwardProfile, cost: CostModel, n_ranks: int
) -> GroupPlan:
    """``plan`` as it is, all of it waited for in backward, or in halves, as simulated."""
    halves = in_halves(plan, profile, n_ranks)
    return halves if step_s(halves, profile, cost) < waiting_s(plan, profile, cost) else plan


def waiting_s(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> float:
    """Seconds of a whole step that waits for all groups of ``plan`` before it goes on."""
    return simulate(lower(plan), plan, profile, cost).extent_s()


def _can_be_owned(param: ParamProfile) -> bool:
    """Norms are asked of dense, real gradients that have elements."""
    return bool(param.nbytes) and not any(word in param.dtype for word in ("sparse", "complex"))
