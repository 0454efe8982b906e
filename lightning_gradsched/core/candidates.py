"""Which plans are worth trying on the real job, best prediction first."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.forward_overlap import forward_overlap, forward_plans, step_s
from lightning_gradsched.core.plan import (
    GroupPlan,
    ddp,
    fixed_size,
    mg_wfbp,
    optimal,
    per_tensor,
    single,
)
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.schedule import lower, lower_into_forward, lower_with_lag
from lightning_gradsched.core.simulate import simulate

MIB = 1 << 20
FIXED_SIZES_NBYTES = (MIB, 4 * MIB, 16 * MIB)


class Candidate(NamedTuple):
    """A plan and the exposed time that the cost model predicts for it."""

    plan: GroupPlan
    exposed_s: float


def candidates(profile: BackwardProfile, cost: CostModel, *, most: int) -> tuple[Candidate, ...]:
    """At most ``most`` unlike plans, DDP's own always among them, the most promising first.

    Of equal predictions the one of fewer groups goes first: each launch costs compute time too.
    """
    plans = [planner(profile, cost) for planner in (ddp, optimal, mg_wfbp, single, per_tensor)]
    plans += [fixed_size(profile, cost, nbytes=nbytes) for nbytes in FIXED_SIZES_NBYTES]
    # Of plans with the same groups the first named stays.
    unlike = {plan.groups: plan for plan in reversed(plans)}.values()
    ranked = sorted(
        (Candidate(plan, _exposed_s(plan, profile, cost)) for plan in unlike),
        key=lambda candidate: (candidate.exposed_s, len(candidate.plan.groups)),
    )
    own = next(candidate for candidate in ranked if candidate.plan.groups == plans[0].groups)
    others = [candidate for candidate in ranked if candidate is not own]
    return tuple(sorted([own, *others[: most - 1]], key=ranked.index))


def forward_candidates(
    profile: BackwardProfile, cost: CostModel, *, most: int
) -> tuple[Candidate, ...]:
    """As ``candidates``, of plans whose reductions go on into the next forward.

    Besides DDP's groups: the best that is found, then those of unlike groups.
    """
    own = ddp(profile, cost)
    ranked = sorted(forward_plans(profile, cost), key=partial(step_s, profile=profile, cost=cost))
    unlike: dict[tuple[tuple[str, ...], ...], GroupPlan] = {}
    for plan in (forward_overlap(profile, cost), *ranked):
        unlike.setdefault(plan.groups, plan)
    others = [plan for plan in unlike.values() if plan.groups != own.groups]
    chosen = [*others[: most - 1], unlike.get(own.groups, own)]
    return tuple(
        sorted(
            (Candidate(plan, _exposed_into_forward_s(plan, profile, cost)) for plan in chosen),
            key=lambda candidate: (candidate.exposed_s, len(candidate.plan.launch_order)),
        )
    )


def lagged_candidates(
    profile: BackwardProfile, cost: CostModel, *, most: int
) -> tuple[Candidate, ...]:
    """As ``candidates``, of plans whose reductions have the whole next step to themselves."""
    plans = [planner(profile, cost) for planner in (ddp, single, optimal, mg_wfbp)]
    plans += [fixed_size(profile, cost, nbytes=nbytes) for nbytes in FIXED_SIZES_NBYTES]
    unlike = list({plan.groups: plan for plan in reversed(plans)}.values())[::-1]

    def exposed_s(plan: GroupPlan) -> float:
        return simulate(lower_with_lag(plan), plan, profile, cost).exposed_s()

    ranked = sorted(
        (Candidate(plan, exposed_s(plan)) for plan in unlike[:most]),
        key=lambda candidate: (candidate.exposed_s, len(candidate.plan.groups)),
    )
    return tuple(ranked)


def _exposed_into_forward_s(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> float:
    return simulate(lower_into_forward(plan, profile), plan, profile, cost).exposed_s()


def _exposed_s(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> float:
    return simulate(lower(plan), plan, profile, cost).exposed_s()
