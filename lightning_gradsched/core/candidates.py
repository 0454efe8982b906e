"""Which plans are worth trying on the real job, best prediction first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.forward_overlap import (
    forward_overlap,
    forward_plans,
    lower_as_measured,
    step_s,
)
from lightning_gradsched.core.plan import (
    GroupPlan,
    Planner,
    ddp,
    fixed_size,
    mg_wfbp,
    optimal,
    per_tensor,
    single,
)
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.scatter import balanced, in_halves
from lightning_gradsched.core.schedule import (
    ReductionSchedule,
    lower,
    lower_into_forward,
    lower_with_lag,
)
from lightning_gradsched.core.simulate import simulate

MIB = 1 << 20
FIXED_SIZES_NBYTES = (MIB, 4 * MIB, 16 * MIB)
SIZES_IN_HALVES_NBYTES = tuple(MIB << k for k in range(5))


class Candidate(NamedTuple):
    """A plan and the exposed time that the cost model predicts for it."""

    plan: GroupPlan
    exposed_s: float


def candidates(profile: BackwardProfile, cost: CostModel, *, most: int) -> tuple[Candidate, ...]:
    """At most ``most`` plans, DDP's own always among them, the most promising first.

    The others have twice or half as many groups as one another: what a group costs on the host, or
    gains there by coming early, is in no prediction. Of equal predictions the one of fewer groups
    goes first.
    """
    plans = _unlike_plans((ddp, optimal, mg_wfbp, single, per_tensor), profile, cost)
    own = ddp(profile, cost)
    ranked = _ranked(plans, lower, profile, cost)
    unlike = set(_unlike_in_number(c.plan for c in ranked if c.plan.groups != own.groups))
    tried = [c for c in ranked if c.plan in unlike or c.plan.groups == own.groups]
    return _best_and_ddp(tried, own, most)


def forward_candidates(
    profile: BackwardProfile, cost: CostModel, *, most: int
) -> tuple[Candidate, ...]:
    """As ``candidates``, of plans whose reductions go on into the next forward.

    Besides DDP's own and the best plan that end with backward, for what is left open costs a host
    too: the best that is found, then others with twice or half as many groups.
    """
    at_end = [candidates(profile, cost, most=2)[0].plan, ddp(profile, cost)]
    ranked = sorted(forward_plans(profile, cost), key=partial(step_s, profile=profile, cost=cost))
    unlike = _unlike_in_number([forward_overlap(profile, cost), *ranked])
    lowered = partial(lower_as_measured, profile=profile, cost=cost)
    tried = [replace(plan, ends_with_backward=True) for plan in at_end]
    tried += islice(unlike, most - len(tried))
    alike = {(plan.groups, lowered(plan)): plan for plan in tried}
    return tuple(_ranked(list(alike.values()), lowered, profile, cost))


def _unlike_in_number(plans: Iterable[GroupPlan]) -> Iterator[GroupPlan]:
    """Those with at least twice, or at most half, as many groups as any before them."""
    numbers: list[int] = []
    for plan in plans:
        number = len(plan.groups)
        if all(number >= 2 * other or 2 * number <= other for other in numbers):
            numbers.append(number)
            yield plan


def candidates_with_norms(
    profile: BackwardProfile, cost: CostModel, n_ranks: int, *, most: int
) -> tuple[Candidate, ...]:
    """As ``candidates``, of steps that look at all gradients at once: in halves or waited for."""
    plans = [balanced(profile, n_ranks, nbytes) for nbytes in SIZES_IN_HALVES_NBYTES]
    plans += _unlike_plans((ddp, optimal, per_tensor), profile, cost)
    unlike = {plan.groups: in_halves(plan, profile, n_ranks) for plan in reversed(plans)}
    in_forward = partial(lower_into_forward, profile=profile)
    halves = _ranked(list(unlike.values()), in_forward, profile, cost)
    ranked = sorted([*halves, *candidates(profile, cost, most=most)], key=_promise)
    return _best_and_ddp(ranked, ddp(profile, cost), most)


def lagged_candidates(
    profile: BackwardProfile, cost: CostModel, *, most: int
) -> tuple[Candidate, ...]:
    """As ``candidates``, of plans whose reductions have the whole next step to themselves."""
    plans = _unlike_plans((ddp, single, optimal, mg_wfbp), profile, cost)[::-1]
    unlike = list(islice(_unlike_in_number(plans), most))
    return tuple(_ranked(unlike, lower_with_lag, profile, cost))


def _unlike_plans(
    planners: Sequence[Planner], profile: BackwardProfile, cost: CostModel
) -> list[GroupPlan]:
    """Theirs and those of fixed sizes, last to first; of the same groups the first named stays."""
    plans = [planner(profile, cost) for planner in planners]
    plans += [fixed_size(profile, cost, nbytes=nbytes) for nbytes in FIXED_SIZES_NBYTES]
    return list({plan.groups: plan for plan in reversed(plans)}.values())


def _ranked(
    plans: Sequence[GroupPlan],
    lowered: Callable[[GroupPlan], ReductionSchedule],
    profile: BackwardProfile,
    cost: CostModel,
) -> list[Candidate]:
    """The most promising first; of equal predictions the one of fewer launches."""

    def candidate(plan: GroupPlan) -> Candidate:
        return Candidate(plan, simulate(lowered(plan), plan, profile, cost).exposed_s())

    return sorted(map(candidate, plans), key=_promise)


def _promise(candidate: Candidate) -> tuple[float, int]:
    """The less, the more promising; of equal predictions, the fewer launches."""
    return candidate.exposed_s, candidate.plan.n_messages


def _best_and_ddp(ranked: Sequence[Candidate], own: GroupPlan, most: int) -> tuple[Candidate, ...]:
    """The first of ``ranked``, among them the one of DDP's groups, all of it waited for."""
    ddps = next(c for c in ranked if c.plan.groups == own.groups and not c.plan.owners)
    others = [candidate for candidate in ranked if candidate is not ddps]
    return tuple(sorted([ddps, *others[: most - 1]], key=ranked.index))
