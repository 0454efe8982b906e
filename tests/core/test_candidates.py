from __future__ import annotations

from itertools import pairwise

from lightning_gradsched.core.candidates import (
    candidates,
    forward_candidates,
    lagged_candidates,
)
from lightning_gradsched.core.cost import AlphaBeta
from lightning_gradsched.core.plan import ddp, optimal
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.schedule import lower, lower_into_forward

MIB = 1 << 20


def chain(n: int, nbytes: int) -> BackwardProfile:
    params = tuple(ParamProfile(f"p{i}", nbytes, ready_s=float(i + 1)) for i in range(n))
    return BackwardProfile(params, forward_s=5.0, backward_s=float(n))


def test_ddps_plan_is_tried_even_where_it_is_predicted_to_be_worst() -> None:
    profile, cost = chain(10, 4 * MIB), AlphaBeta(0.01, 0.2 / MIB)
    tried = candidates(profile, cost, most=3)
    assert len(tried) == 3
    assert ddp(profile, cost).groups in [c.plan.groups for c in tried]
    assert tried[0].exposed_s == min(c.exposed_s for c in tried)
    assert [c.exposed_s for c in tried] == sorted(c.exposed_s for c in tried)


def test_the_best_prediction_is_that_of_the_optimal_plan() -> None:
    profile, cost = chain(12, MIB), AlphaBeta(0.5, 0.3 / MIB)
    best = candidates(profile, cost, most=1 + 1)[0]
    assert best.exposed_s == min(
        c.exposed_s for c in candidates(profile, cost, most=100) if c.plan.planner == "optimal"
    )
    assert best.plan.groups == optimal(profile, cost).groups


def test_plans_of_twice_or_half_as_many_groups_are_tried_beside_ddps() -> None:
    profile, cost = chain(64, MIB // 4), AlphaBeta(1e-3, 0.9 / MIB)
    own = ddp(profile, cost).groups
    for tried in (candidates(profile, cost, most=4), lagged_candidates(profile, cost, most=4)):
        assert own in [c.plan.groups for c in tried]
        numbers = sorted(len(c.plan.groups) for c in tried if c.plan.groups != own)
        assert len(numbers) == 3
        assert all(2 * fewer <= more for fewer, more in pairwise(numbers))


def test_plans_with_the_same_groups_are_tried_once() -> None:
    tried = candidates(chain(1, 8), AlphaBeta(1.0, 0.0), most=10)
    assert [c.plan.planner for c in tried] == ["ddp"]


def test_forward_plans_of_twice_or_half_as_many_groups_are_tried() -> None:
    profile, cost = chain(64, MIB // 4), AlphaBeta(1e-3, 0.9 / MIB)
    tried = forward_candidates(profile, cost, most=4)
    fewer, more = sorted(len(c.plan.groups) for c in tried if not c.plan.ends_with_backward)
    assert 2 * fewer <= more


def test_plans_that_come_to_the_same_steps_are_tried_once() -> None:
    tried = forward_candidates(chain(1, 8), AlphaBeta(1.0, 0.0), most=4)
    assert [len(c.plan.groups) for c in tried] == [1]


def test_ddps_and_the_best_plan_that_end_with_backward_are_tried_beside_forward_plans() -> None:
    profile, cost = chain(64, MIB // 4), AlphaBeta(1e-3, 0.9 / MIB)
    tried = forward_candidates(profile, cost, most=4)
    at_end = [c for c in tried if c.plan.ends_with_backward]
    best, own = candidates(profile, cost, most=2)
    assert own.plan.groups == ddp(profile, cost).groups
    assert [(c.plan.groups, c.exposed_s) for c in at_end] == [
        (best.plan.groups, best.exposed_s),
        (own.plan.groups, own.exposed_s),
    ]
    assert lower_into_forward(at_end[0].plan, profile) == lower(best.plan)
