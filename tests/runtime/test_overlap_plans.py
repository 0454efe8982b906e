"""Plans of steps that go on into the next forward, run on ranks."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core import forward_overlap
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from tests.ranks import run_ranks
from tests.runtime.overlapping import adam, nets, one_step


def in_pieces(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    names = tuple((param.name,) for param in profile.params)
    return GroupPlan("in_pieces", names, launches=(0, 1, 2, 1, 2, 2))


def planned(
    rank: int, planner: Any, reduce_dtype: str | None, sure_share: float | None = None
) -> tuple[bool, Any, Any]:
    if sure_share is not None:
        forward_overlap.SURELY_HIDDEN_SHARE = sure_share
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        config = GradSchedConfig(
            planner=planner if is_ours else "ddp",
            overlap_forward=is_ours,
            reduce_dtype=reduce_dtype,
            record_every_n_steps=1,
        )
        scheduler = GradientScheduler(net, config)
        optimizer = adam(net)
        if is_ours:
            scheduler.overlap(optimizer)
            ours = scheduler
        for step in range(36):
            one_step(net, optimizer, rank, step)
        results.append([p.detach().clone() for p in net.parameters()])
        if not is_ours:
            scheduler.detach()
    alike = all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    report = ours.report(across_ranks=True)
    schedule = str(ours.schedule)
    ours.detach()
    return alike, schedule, report


@pytest.mark.parametrize("reduce_dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    ("sure_share", "waits"), [(0.0, "W0 | W2 W1"), (inf, "W0 W1 W2")], ids=["open", "closed"]
)
def test_pieces(reduce_dtype: str | None, sure_share: float, waits: str) -> None:
    for alike, schedule, report in run_ranks(2, planned, in_pieces, reduce_dtype, sure_share):
        assert alike
        assert schedule == f"R0 R1 R2 R1 R2 R2 {waits}"
        assert [row.label for row in report.rows] == ["0", "1", "2"]


def test_the_best_plans_are_tried_on_the_job_and_the_report_is_of_whole_steps() -> None:
    for alike, schedule, report in run_ranks(2, planned, "auto", None):
        assert alike
        assert schedule.startswith("R0")
        assert 1 <= len(report.tried) <= 4
        assert report.bounds.step_s <= report.bounds.backward_s
        assert "no forward and backward take less than" in str(report)
        assert 0 <= report.exposed_s <= report.step_s


def at_end(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    names = tuple((param.name,) for param in profile.params)
    return GroupPlan("at_end", names, ends_with_backward=True)


def restored(rank: int) -> tuple[str, list[Any]]:
    config = GradSchedConfig(planner=at_end, overlap_forward=True)
    plans, state = [], None
    for _ in range(3):
        net, _ = nets()
        scheduler = GradientScheduler(net, config)
        optimizer = adam(net)
        scheduler.overlap(optimizer)
        if state is not None:
            assert scheduler.restore_plan(state)
        for step in range(10):
            one_step(net, optimizer, rank, step)
        plans.append(scheduler.plan)
        schedule = str(scheduler.schedule)
        if state is None:
            state = scheduler.plan_state()
        else:  # as of a version before
            state.pop("ends_with_backward", None)
        scheduler.detach()
    return schedule, plans


def test_a_plan_that_ends_with_backward_is_restored() -> None:
    for schedule, (first, again, old) in run_ranks(2, restored):
        assert first.ends_with_backward
        assert again == first
        assert not old.ends_with_backward
        assert "|" in schedule, "which a plan without the word does not"
