"""Lagged schedules, their steps on a simulated clock and at scale; and who owns what shard."""

from __future__ import annotations

import doctest

import pytest

import lightning_gradsched.core.report as report_module
import lightning_gradsched.core.shards as shards_module
from lightning_gradsched.core.candidates import lagged_candidates
from lightning_gradsched.core.cost import AlphaBeta
from lightning_gradsched.core.networks import NETWORKS
from lightning_gradsched.core.plan import ddp, per_tensor, single
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.published import deeplab_summit
from lightning_gradsched.core.report import step_s_of
from lightning_gradsched.core.scale import MODES, Scenario
from lightning_gradsched.core.schedule import ReductionSchedule, lower_with_lag
from lightning_gradsched.core.shards import owners
from lightning_gradsched.core.simulate import simulate

PARAMS = tuple(
    ParamProfile(f"layer{i}", 1000, ready_s=1.0 + i, needed_s=0.5 * (3 - i)) for i in range(4)
)
PROFILE = BackwardProfile(PARAMS, forward_s=2.0, backward_s=4.0)  # compute: 6 s


@pytest.mark.parametrize("module", [report_module, shards_module])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_a_lagged_schedule_is_read_as_it_is_printed() -> None:
    schedule = lower_with_lag(per_tensor(PROFILE, AlphaBeta(0.0, 0.0)))
    assert str(schedule) == "R0 R1 R2 R3 W0[-1] W1[-1] W2[-1] W3[-1]"
    assert ReductionSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("comm_s", [0.5, 3.0, 5.9, 6.0, 7.0, 20.0])
@pytest.mark.parametrize("planner", [single, per_tensor, ddp])
def test_a_step_lasts_as_long_as_the_longer_of_compute_and_communication(
    comm_s: float, planner: object
) -> None:
    cost = AlphaBeta(alpha_s=0.0, beta_s_per_byte=comm_s / 4000)
    plan = planner(PROFILE, cost)  # type: ignore[operator]
    timeline = simulate(lower_with_lag(plan), plan, PROFILE, cost)
    assert step_s_of(timeline) == pytest.approx(max(6.0, comm_s))
    assert timeline.exposed_s() == pytest.approx(max(0.0, comm_s - 6.0))


def test_ddps_groups_and_one_group_are_among_the_candidates() -> None:
    cost = AlphaBeta(alpha_s=0.1, beta_s_per_byte=1e-3)
    groups = {c.plan.groups for c in lagged_candidates(PROFILE, cost, most=4)}
    assert {ddp(PROFILE, cost).groups, single(PROFILE, cost).groups} <= groups


def test_at_scale_each_mode_hides_more_than_the_one_before() -> None:
    points = [
        Scenario(deeplab_summit().profile, NETWORKS["summit"], mode=mode).at(2048, "bits")
        for mode in MODES
    ]
    assert points[0].exposed_s > points[1].exposed_s >= points[2].exposed_s >= 0


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_no_rank_owns_more_than_its_share_and_the_largest(n_ranks: int) -> None:
    nbytes = [(37 * i) % 101 + 1 for i in range(40)]
    loads = [0] * n_ranks
    for size, rank in zip(nbytes, owners(nbytes, loads), strict=True):
        loads[rank] += size
    assert sum(loads) == sum(nbytes)
    assert max(loads) <= sum(nbytes) / n_ranks + max(nbytes)
