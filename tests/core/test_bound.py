from __future__ import annotations

import doctest
import random

import pytest

from lightning_gradsched.core import bound as bound_module
from lightning_gradsched.core.bound import bounds
from lightning_gradsched.core.cost import AlphaBeta, CostModel, Interpolated
from lightning_gradsched.core.forward_overlap import forward_plans, step_s
from lightning_gradsched.core.plan import PLANNER_NAMES, planner_named
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.schedule import lower
from lightning_gradsched.core.simulate import simulate

COSTS = (
    AlphaBeta(0.0, 1.0),
    AlphaBeta(3.0, 0.5),
    # Two small messages are faster than one of twice the size.
    Interpolated((10.0, 20.0, 100.0), (5.0, 30.0, 60.0)),
)


def random_profile(seed: int, n: int) -> BackwardProfile:
    """Uses in forward nearly reverse the ready order, but not quite; some come together."""
    draw = random.Random(seed)
    ready = sorted(draw.choice([draw.uniform(0, 100), 40.0]) for _ in range(n))
    params = (
        ParamProfile(
            f"p{i}",
            draw.choice([1, 5, 60]),
            ready_s=ready_s,
            needed_s=min(50.0, max(0.0, 50.0 - ready_s / 2 + draw.uniform(-10, 10))),
        )
        for i, ready_s in enumerate(ready)
    )
    return BackwardProfile(tuple(params), forward_s=50.0, backward_s=100.0)


def test_doctests() -> None:
    assert doctest.testmod(bound_module).failed == 0


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(6))
def test_no_plan_is_faster_than_its_bound(seed: int, cost: CostModel) -> None:
    profile = random_profile(seed, n=12)
    least = bounds(profile, cost)
    assert least.step_s <= least.backward_s
    for plan in forward_plans(profile, cost):
        assert step_s(plan, profile, cost) >= least.step_s * (1 - 1e-9)
    for name in PLANNER_NAMES:
        plan = planner_named(name, group_nbytes=50)(profile, cost)
        whole_s = simulate(lower(plan), plan, profile, cost).extent_s()
        assert whole_s >= least.backward_s * (1 - 1e-9), name


def test_a_chain_is_bounded_by_its_worst_cut() -> None:
    """Layers 1 to 3: forward 1 s each, backward 2 s each, communication 8, 2 and 1 s."""
    layers = (("3", 1, 2.0, 2.0), ("2", 2, 4.0, 1.0), ("1", 8, 6.0, 0.0))
    params = tuple(ParamProfile(n, b, ready_s=r, needed_s=u) for n, b, r, u in layers)
    least = bounds(BackwardProfile(params, forward_s=3.0, backward_s=6.0), AlphaBeta(0.0, 1.0))
    # compute of layers 1 to 3, and layer 1's 8 s: nothing can hide them
    assert least.step_s == 6 + 3 + 8
    # forward, backward of all, layer 1: the same, as all else is sent before
    assert least.backward_s == 3 + 6 + 8


def test_without_parameters_a_step_is_its_compute() -> None:
    assert bounds(BackwardProfile((), 1.0, 2.0), AlphaBeta(1.0, 1.0)) == (3.0, 3.0)
