"""Rank 0's buffers before each forward that DDP would send them for: beside DDP on real ranks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH
from tests.ranks import errors_of_ranks, run_ranks

State = dict[str, Tensor]


class Normalized(nn.Module):
    """Statistics in two dtypes, a complex buffer, and one that is assigned anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))
        self.register_buffer("last", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.phase.mul_(torch.polar(torch.tensor(1.0), x.detach().mean()))
            self.last = x.detach().mean(dim=0)
        return self.norm(self.encode(x))


def steps_of(
    net: nn.Module, forward: nn.Module, no_sync: Callable[[], Any], rank: int, kind: str
) -> list[State]:
    """The state after each forward, on this rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    states = []

    def run() -> Tensor:
        loss = forward(torch.randn(4, WIDTH, generator=generator)).square().mean()
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        return loss

    for step in range(4):
        optimizer.zero_grad()
        if kind == "accumulate":
            for _ in range(2):
                with no_sync():
                    run().backward()
        if kind == "no_grad" and step == 2:
            with torch.no_grad():
                run()
        loss = run()
        if kind == "twice":  # as a discriminator, on real and on made images
            loss = loss + run()
        loss.backward()
        optimizer.step()
    return states


def beside_ddp(rank: int, kind: str) -> tuple[list[State], list[State]]:
    torch.manual_seed(0)
    ours = Normalized()
    theirs = deepcopy(ours)
    scheduler = GradientScheduler(ours)
    ddp = DistributedDataParallel(theirs)
    return (
        steps_of(ours, ours, scheduler.no_sync, rank, kind),
        steps_of(theirs, ddp, ddp.no_sync, rank, kind),
    )


@pytest.mark.parametrize("kind", ["plain", "accumulate", "twice", "no_grad"])
def test_buffers_are_as_in_ddp_after_each_forward(kind: str) -> None:
    ranks = run_ranks(2, beside_ddp, kind)
    for rank, (ours, theirs) in enumerate(ranks):
        assert len(ours) == len(theirs)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert all(torch.equal(a[name], b[name]) for name in b), (rank, i)
    first, second = ranks[0][0][-1], ranks[1][0][-1]
    assert not torch.equal(first["norm.running_mean"], second["norm.running_mean"])


def local(rank: int, config: GradSchedConfig) -> list[State]:
    torch.manual_seed(0)
    net = Normalized()
    scheduler = GradientScheduler(net, config)
    before = len(net._forward_pre_hooks)
    states = steps_of(net, net, scheduler.no_sync, rank, "plain")
    scheduler.detach()
    assert before == int(config.broadcast_buffers)
    assert not net._forward_pre_hooks
    assert not net._forward_hooks
    return states


def test_switched_off_each_rank_keeps_its_own() -> None:
    for rank, states in enumerate(
        run_ranks(2, local, GradSchedConfig(planner="ddp", broadcast_buffers=False))
    ):
        generator = torch.Generator().manual_seed(100 + rank)
        for _ in range(4):
            last = torch.randn(4, WIDTH, generator=generator).mean(dim=0)
        assert torch.equal(states[-1]["last"], last)
        assert states[-1]["norm.num_batches_tracked"] == 4
    on = run_ranks(2, local, GradSchedConfig(planner="ddp"))
    off = run_ranks(2, local, GradSchedConfig(planner="ddp", broadcast_buffers=False))
    assert torch.equal(on[0][-1]["norm.running_mean"], off[0][-1]["norm.running_mean"])
    assert not torch.equal(on[1][-1]["norm.running_mean"], off[1][-1]["norm.running_mean"])


def evaluate(rank: int) -> tuple[State, State, int]:
    """Rank 0 alone evaluates; a forward raises; a step of several forwards is one."""
    torch.manual_seed(0)
    net = Normalized()
    scheduler = GradientScheduler(net)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(rank))
    net(x).sum().backward()
    if rank == 0:
        net.eval()
        with torch.no_grad():
            net(x)
        net.train()
    try:
        net(x[:, :3])
    except RuntimeError:
        pass
    else:
        raise AssertionError
    net(x).sum().backward()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scheduler.sync_buffers()
    after = {name: value.clone() for name, value in net.state_dict().items()}
    with scheduler.forward_pass():
        net(x)
        if rank == 0:
            net(x)  # no message of its own
    return before, after, int(net.norm.num_batches_tracked)


def test_what_runs_on_one_rank_alone_sends_nothing() -> None:
    first, second = run_ranks(2, evaluate)
    assert not torch.equal(first[0]["last"], second[0]["last"])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert torch.equal(first[0]["last"], first[1]["last"]), "rank 0's"
    assert first[2] == second[2] + 1


def saved_for_backward(rank: int) -> list[Tensor]:
    """Two forwards, then backward: autograd must not take a sent buffer for a changed one."""
    torch.manual_seed(0)
    net = Scaled()
    GradientScheduler(net)
    x = torch.full((2, WIDTH), float(rank + 1))
    (net(x) + net(x)).sum().backward()
    return [p.grad.clone() for p in net.parameters()]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("scale", torch.full((WIDTH,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.scale


def test_a_buffer_that_backward_needs_may_be_sent_before_it() -> None:
    for (grad,) in run_ranks(2, saved_for_backward):
        assert torch.equal(grad, torch.full((WIDTH,), 2 * 2 * 2 * 1.5))


def alone_in_training(rank: int) -> None:
    net = Normalized()
    GradientScheduler(net, GradSchedConfig(planner="ddp", stall_timeout_s=10.0))
    if rank == 1:
        net(torch.randn(4, WIDTH))
    else:
        torch.distributed.barrier()


def test_a_forward_on_one_rank_alone_ends_with_an_error_that_tells_the_way_out() -> None:
    message = errors_of_ranks(2, alone_in_training)[1]
    assert message.startswith("ReductionError: the broadcast of 5 buffers")
    assert "broadcast_buffers=False" in message
