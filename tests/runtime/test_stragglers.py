"""Reports that compare the ranks: on real ones of which one is late, and on told numbers."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.report import OverlapReport
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.recorder import FIRST_RECORDED_STEP
from tests.ranks import errors_of_ranks, run_ranks

WIDTH = 16
# Longer than a loaded machine delays most transfers; the report shows the step of median exposed
# time, so that one step of N_RECORDED that was held up does not decide.
LATE_S = 0.6
N_RECORDED = 5


class LateInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grads[0], None


class Chain(nn.Module):
    """Its backward pauses after ``head``: ``body`` and ``stem`` are late."""

    def __init__(self, late_s: float) -> None:
        super().__init__()
        self.late_s = late_s
        self.stem, self.body, self.head = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(LateInBackward.apply(self.body(self.stem(x)), self.late_s))


def train(net: nn.Module, config: GradSchedConfig, n_steps: int) -> GradientScheduler:
    scheduler = GradientScheduler(net, config)
    for _ in range(n_steps):
        net.zero_grad()
        net(torch.ones(2, WIDTH)).sum().backward()
    return scheduler


def train_with_a_late_rank(rank: int, late_rank: int) -> tuple[OverlapReport, OverlapReport]:
    net = Chain(LATE_S if rank == late_rank else 0.0)
    config = GradSchedConfig(planner="per_tensor", record_every_n_steps=1)
    scheduler = train(net, config, FIRST_RECORDED_STEP + N_RECORDED - 1)
    return scheduler.report(across_ranks=True), scheduler.report()


@pytest.mark.parametrize("late_rank", [0, 2])
def test_the_rank_that_comes_late_is_named_on_all_others(late_rank: int) -> None:
    ranks = run_ranks(3, train_with_a_late_rank, late_rank)
    for rank, (across, alone) in enumerate(ranks):
        row_of = {row.names: row for row in across.rows}
        body = row_of["body.weight",]
        if rank == late_rank:
            assert (body.waited_for, body.reason != "straggler") == (None, True)
        else:
            assert (body.reason, body.waited_for) == ("straggler", late_rank)
            assert body.waited_s > LATE_S / 2
            assert f"for rank {late_rank}" in str(across)
        assert all(row.waited_for is None for row in alone.rows)
        assert across.exposed_s == alone.exposed_s, "the sums are this rank's own"


def report_of_unlike_steps(rank: int) -> None:
    """As many recorded, but not the same."""
    config = GradSchedConfig(record_every_n_steps=[4, 5][rank])
    train(Chain(0.0), config, 9).report(across_ranks=True)


def test_ranks_that_recorded_unlike_steps_all_say_so() -> None:
    for message in errors_of_ranks(2, report_of_unlike_steps):
        assert message.startswith("ConsensusError")
        assert "on rank 0 and" in message
        assert "the same record_every_n_steps" in message


def report_too_early(rank: int) -> None:
    train(Chain(0.0), GradSchedConfig(), 2).report(across_ranks=True)


def report_too_late(rank: int) -> None:
    scheduler = train(Chain(0.0), GradSchedConfig(record_every_n_steps=1), 7)
    scheduler.detach()
    assert scheduler.report().n_steps > 0
    scheduler.report(across_ranks=True)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (report_too_early, "no step is measured yet"),
        (report_too_late, "ranks cannot be compared after detach"),
    ],
)
def test_a_report_that_cannot_be_is_refused_on_every_rank(ask: Any, expected: str) -> None:
    for message in errors_of_ranks(2, ask):
        assert message.startswith(f"GradSchedError: {expected}")


def predicted_report(rank: int) -> tuple[OverlapReport, Any]:
    scheduler = train(Chain(0.0), GradSchedConfig(planner="optimal", record_every_n_steps=1), 16)
    return scheduler.report(), scheduler.predicted


def test_the_report_of_a_measured_plan_holds_its_prediction() -> None:
    for report, predicted in run_ranks(2, predicted_report):
        assert report.predicted is not None
        assert report.predicted.exposed_s == predicted.exposed_s()
        assert report.predicted.comm_s == predicted.busy_s("communication")
        assert all(row.predicted_finish_s > 0 for row in report.rows)


class Told:
    """A rank of five, among others that took so many nanoseconds."""

    world_size = 5
    ranks = tuple(range(5))
    rank = 1

    def __init__(self, others_ns: list[list[int]]) -> None:
        self._others_ns = others_ns

    def min_and_max(self, value: int, _what: str) -> tuple[int, int]:
        return value, value

    def max(self, values: list[int]) -> list[int]:
        ranks = [0, 2, 3, 4]
        others = [
            [-(ns * self.world_size + rank) for ns in row]
            for rank, row in zip(ranks, self._others_ns, strict=True)
        ]
        return [max(column) for column in zip(values, *others, strict=True)]


def test_the_fastest_of_ranks_and_of_equals_the_first() -> None:
    told = Told([[9, 7, 5], [8, 7, 4], [3, 9, 9], [4, 9, 4]])
    made = consensus.agree_on_fastest(cast(Collectives, told), [6], [[4e-9, 6e-9, 5e-9]])
    assert [(round(1e9 * f.seconds), f.rank) for f in made[0]] == [(3, 3), (6, 1), (4, 2)]
