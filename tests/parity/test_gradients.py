"""Gradients of every step: gradsched beside DDP and beside the slow reference, on real ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import NETS, WIDTH, SharedReentrant
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks

N_STEPS = 4
Gradients = list[dict[str, Tensor]]


def batches(rank: int, accumulate: int) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(N_STEPS):
        yield [torch.randn(3, WIDTH, generator=generator) for _ in range(accumulate)]


def train(
    net: nn.Module,
    rank: int,
    accumulate: int,
    *,
    forward: Callable[[Tensor], Tensor],
    no_sync: Callable[[], Any] = nullcontext,
    after_backward: Callable[[], None] = lambda: None,
) -> Gradients:
    """The gradients of each step of SGD; the last micro-batch of a step is outside of no_sync."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    steps: Gradients = []
    for batch in batches(rank, accumulate):
        optimizer.zero_grad()
        for i, x in enumerate(batch):
            with nullcontext() if i == len(batch) - 1 else no_sync():
                torch.cos(forward(x)).mean().backward()
        after_backward()
        steps.append({n: p.grad.clone() for n, p in net.named_parameters()})
        optimizer.step()
    return steps


def all_three(
    rank: int, name: str, accumulate: int, planner: str, schedule: str
) -> tuple[Gradients, Gradients, Gradients]:
    torch.manual_seed(0)
    ours = NETS[name]()
    ddp_net, plain = deepcopy(ours), deepcopy(ours)
    scheduler = GradientScheduler(ours, GradSchedConfig(planner=planner, schedule=schedule))
    ddp = DistributedDataParallel(ddp_net)
    gradients = (
        train(ours, rank, accumulate, forward=ours, no_sync=scheduler.no_sync),
        train(ddp_net, rank, accumulate, forward=ddp, no_sync=ddp.no_sync),
        train(
            plain, rank, accumulate, forward=plain, after_backward=lambda: average_gradients(plain)
        ),
    )
    scheduler.detach()
    return gradients


# How many micro-batches a step has, the planner and the schedule.
WAYS = [
    (1, "ddp", "static"),
    (3, "per_tensor", "static"),
    (1, "per_tensor", "negotiated"),
    (3, "per_tensor", "negotiated"),
]


def all_three_each_way(rank: int, name: str) -> list[tuple[Gradients, Gradients, Gradients]]:
    return [all_three(rank, name, *way) for way in WAYS]


@pytest.mark.parametrize("n_ranks", [2, 3])
@pytest.mark.parametrize("name", NETS)
def test_gradients_equal_ddp_and_reference(name: str, n_ranks: int) -> None:
    ranks = run_ranks(n_ranks, all_three_each_way, name)
    for i, way in enumerate(WAYS):
        for ours, ddp, reference in (each[i] for each in ranks):
            for step in range(N_STEPS):
                for param, grad in ours[step].items():
                    across = ranks[0][i][0][step][param]
                    assert torch.equal(grad, across), (way, step, param, "across ranks")
                    for other in (ddp[step][param], reference[step][param]):
                        # Of three summands the order, and so the rounding, is the backend's.
                        tolerance = 0.0 if n_ranks == 2 else 1e-6 * other.norm()
                        assert (grad - other).norm() <= tolerance, (way, step, param)


PLANNERS = ["ddp", "fixed_size", "single", "per_tensor"]


def all_three_by_each_planner(rank: int) -> list[tuple[Gradients, Gradients, Gradients]]:
    return [all_three(rank, "residual", 1, planner, "auto") for planner in PLANNERS]


def test_every_planner_gives_the_same_gradients() -> None:
    results = run_ranks(2, all_three_by_each_planner)[0]
    for planner, (ours, ddp, _) in zip(PLANNERS, results, strict=True):
        for step in range(N_STEPS):
            for param, grad in ours[step].items():
                assert torch.equal(grad, ddp[step][param]), (planner, step, param)


def shared_reentrant(rank: int, schedule: str) -> tuple[Gradients, Gradients]:
    torch.manual_seed(0)
    ours = SharedReentrant()
    plain = deepcopy(ours)
    GradientScheduler(ours, GradSchedConfig(planner="per_tensor", schedule=schedule))
    return (
        train(ours, rank, 1, forward=ours),
        train(plain, rank, 1, forward=plain, after_backward=lambda: average_gradients(plain)),
    )


@pytest.mark.parametrize("schedule", ["static", "negotiated"])
def test_a_block_shared_by_reentrant_segments_is_reduced_once_complete(schedule: str) -> None:
    """DDP refuses this net ("marked ready twice"), so the reference alone is compared."""
    for ours, reference in run_ranks(2, shared_reentrant, schedule):
        for step in range(N_STEPS):
            for param, grad in ours[step].items():
                assert torch.equal(grad, reference[step][param]), (step, param)
