"""A rank leaves a backward out: zeros in the mean, and nobody waits."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH, Residual
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks

N_RANKS = 3
# By step, the ranks that skip it; rank 1 the very first, from which the others plan.
SKIPPED: list[set[int]] = [{1}, set(), {0, 2}, {0}, {0, 1, 2}, {2}, set()]


def batch(rank: int, number: int) -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(100 * number + rank))


def steps(rank: int, schedule: str, planner: str, accumulate: int) -> list[tuple[bool, bool]]:
    """Of each step, whether all gradients are the reference's, and whether there are any."""
    torch.manual_seed(0)
    net = Residual()
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(planner=planner, schedule=schedule))
    seen = []
    for step, skips in enumerate(SKIPPED * 4):
        net.zero_grad()
        plain.zero_grad()
        for i in range(accumulate):
            x = batch(rank, accumulate * step + i)
            # In a window the rank skips its last micro-batch: what it has kept counts.
            is_last = i == accumulate - 1
            with nullcontext() if is_last else scheduler.no_sync():
                if rank in skips and (is_last or step % 2):
                    scheduler.skip_backward()
                    continue
                net(x).square().mean().backward()
            plain(x).square().mean().backward()
        average_gradients(plain)
        pairs = [
            (p.grad, q.grad) for p, q in zip(net.parameters(), plain.parameters(), strict=True)
        ]
        same = all(
            ours is None if theirs is None else torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
            for ours, theirs in pairs
        )
        seen.append((same, any(ours is not None for ours, _ in pairs)))
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("schedule", "planner"),
    [
        ("static", "per_tensor"),
        ("static", "single"),
        ("negotiated", "per_tensor"),
        ("auto", "auto"),
    ],
)
def test_it_counts_as_zeros(schedule: str, planner: str, accumulate: int) -> None:
    for seen in run_ranks(N_RANKS, steps, schedule, planner, accumulate):
        assert all(same for same, _ in seen)
        for (_, has_any), skips in zip(seen, SKIPPED * 4, strict=True):
            assert has_any or (len(skips) == N_RANKS), "nothing to reduce only if all skip"


def with_buffers(rank: int) -> tuple[list[float], Tensor]:
    """Rank 1 drops a batch before its forward, in its own way: forward_pass() stands for it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4))
    scheduler = GradientScheduler(net)
    means = []
    for step in range(4):
        net.zero_grad()
        if rank == 1 and step % 2 == 0:
            with scheduler.forward_pass():
                pass
            scheduler.skip_backward()
        else:
            net(batch(rank, step)).square().sum().backward()
        means.append(float(net[0].weight.grad.sum()))
    scheduler.sync_buffers()
    return means, net[1].running_mean


def test_a_forward_that_is_left_out_too_has_its_place_held() -> None:
    (means, running), (means_of_1, running_of_1) = run_ranks(2, with_buffers)
    assert means == means_of_1
    assert torch.equal(running, running_of_1)


def of_constant(rank: int) -> list[Tensor]:
    net = nn.Linear(2, 1)
    scheduler = GradientScheduler(net)
    grads = []
    for _ in range(3):
        net.zero_grad()
        loss = net(torch.full((1, 2), 6.0)).sum() if rank == 0 else torch.ones(())
        # A loss that may be constant, in one line.
        loss = loss + scheduler.zero_loss()
        scheduler.prepare(loss)
        loss.backward()
        grads.append(net.weight.grad.clone())
    return grads


def test_a_constant_loss_becomes_one_that_counts_as_zeros() -> None:
    for grads in run_ranks(2, of_constant):
        assert all(grad.eq(3.0).all() for grad in grads)
