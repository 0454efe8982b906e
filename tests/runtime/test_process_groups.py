"""Engines on part of the ranks: each half of them trains its own model."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.ranks import errors_of_ranks, run_ranks

WIDTH = 6
State = dict[str, Tensor]


def net_of(half: int) -> nn.Module:
    """The halves' nets are unlike, so that a message to the other half would be noticed."""
    return nn.Sequential(nn.Linear(WIDTH, 4 + half), nn.BatchNorm1d(4 + half), nn.Tanh())


def train(net: nn.Module, forward: nn.Module, rank: int, n_steps: int) -> State:
    generator = torch.Generator().manual_seed(100 + rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(n_steps):
        optimizer.zero_grad()
        torch.cos(forward(torch.randn(4, WIDTH, generator=generator))).mean().backward()
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}


def halves(rank: int, planner: str, hooked: bool) -> tuple[State, State]:
    half = rank // 2
    group = [dist.new_group([0, 1]), dist.new_group([2, 3])][half]
    for_ddp = [dist.new_group([0, 1]), dist.new_group([2, 3])][half]
    torch.manual_seed(rank)  # the first of each half gives its weights to the other
    ours = net_of(half)
    theirs = deepcopy(ours)
    scheduler = GradientScheduler(ours, GradSchedConfig(planner=planner), process_group=group)
    ddp = DistributedDataParallel(theirs, process_group=for_ddp)
    if hooked:
        # The same group carries the hook's messages and ours.
        state, other = (
            powerSGD_hook.PowerSGDState(g, start_powerSGD_iter=2) for g in (group, for_ddp)
        )
        scheduler.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        ddp.register_comm_hook(other, powerSGD_hook.powerSGD_hook)
    # Unlike numbers of steps: neither half waits for the other.
    n_steps = 12 + 3 * half
    return train(ours, ours, rank, n_steps), train(theirs, ddp, rank, n_steps)


def check(ranks: list[tuple[State, State]]) -> None:
    for rank, (ours, theirs) in enumerate(ranks):
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), (rank, name)
    for name, _ in net_of(0).named_parameters():
        assert torch.equal(ranks[0][0][name], ranks[1][0][name])
        assert torch.equal(ranks[2][0][name], ranks[3][0][name])


def test_two_halves_train_independently() -> None:
    check(run_ranks(4, halves, "per_tensor", False))


def test_a_measured_plan_is_made_within_the_group() -> None:
    check(run_ranks(4, halves, "optimal", False))


def test_a_hook_may_use_the_engines_own_group() -> None:
    check(run_ranks(4, halves, "ddp", True))


def unlike_in_a_half(rank: int, what: str) -> None:
    """Of the ranks 2 and 3, the second differs, or does not come back after a step."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    if rank < 2:
        raise ValueError("not of this half")
    net = net_of(rank if what == "model" else 0)
    planner = "single" if (what, rank) == ("settings", 3) else "per_tensor"
    stall_timeout_s = 15.0 if what == "fault" else 60.0
    config = GradSchedConfig(planner=planner, stall_timeout_s=stall_timeout_s)
    GradientScheduler(net, config, process_group=groups[1])
    net(torch.ones(4, WIDTH)).mean().backward()
    if rank == 3:
        raise ZeroDivisionError("no such luck")
    net(torch.ones(4, WIDTH)).mean().backward()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("model", ["is '0.weight' of shape (6, 6)", "on rank 2 and '0.weight' of shape (7, 6)"]),
        ("settings", ["planner is 'per_tensor' on rank 2 and 'single' on rank 3"]),
        ("fault", ["did not finish: rank 2 waited", "for rank 2's buffers", "Rank 3 "]),
    ],
)
def test_errors_name_ranks_as_the_whole_job_counts_them(what: str, said: list[str]) -> None:
    *_, third, fourth = errors_of_ranks(4, unlike_in_a_half, what)
    for part in said:
        assert part in third, third
        assert part in fourth or what == "fault", fourth
