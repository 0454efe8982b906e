"""Plans of steps that go on into the next forward, run on ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from tests.ranks import run_ranks
from tests.runtime.overlapping import adam, nets, one_step


def in_pieces(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    names = tuple((param.name,) for param in profile.params)
    return GroupPlan("in_pieces", names, launches=(0, 1, 2, 1, 2, 2))


def planned(rank: int, planner: Any, reduce_dtype: str | None) -> tuple[bool, Any, Any]:
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
def test_pieces(reduce_dtype: str | None) -> None:
    for alike, schedule, report in run_ranks(2, planned, in_pieces, reduce_dtype):
        assert alike
        # Whether backward waits for more, of what has come by then, is a matter of measurement.
        assert schedule.startswith("R0 R1 R2 R1 R2 R2 W0")
        assert [row.label for row in report.rows] == ["0", "1", "2"]


def test_the_best_plans_are_tried_on_the_job_and_the_report_is_of_whole_steps() -> None:
    for alike, schedule, report in run_ranks(2, planned, "auto", None):
        assert alike
        assert schedule.endswith("W0") or "|" in schedule
        assert 2 <= len(report.tried) <= 4
        assert report.bounds.step_s <= report.bounds.backward_s
        assert "no forward and backward take less than" in str(report)
        assert 0 <= report.exposed_s <= report.step_s
