"""Uneven data in plain loops: beside one process that computes what the mean should be."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH, Residual
from tests.ranks import errors_of_ranks, run_ranks

Weights = dict[str, Tensor]
DATA: dict[str, tuple[int, ...]] = {
    "one stops early": (5, 2),
    "rank 0 stops early": (1, 4),
    "one has none": (0, 3),
    "three": (2, 5, 3),
    "all alike": (3, 3),
    "none at all": (0, 0),
}


def batches(rank: int, n_batches: int, epoch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * epoch + rank)
    return [torch.randn(3, WIDTH, generator=generator) for _ in range(n_batches)]


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    """With momentum, so that a rank that left a step out would go astray from then on."""
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def joined(rank: int, data: tuple[int, ...], divide_by: str, options: dict[str, Any]) -> Any:
    """Two epochs; the weights, the momenta and the numbers of turns."""
    torch.manual_seed(0)
    net = Residual()
    config = {key: value for key, value in options.items() if key not in ("accumulate", "hook")}
    scheduler = GradientScheduler(net, GradSchedConfig(**{"planner": "per_tensor", **config}))
    if "hook" in options:
        scheduler.register_comm_hook(None, allreduce_hook)
    optimizer = optimizer_of(net)
    every = options.get("accumulate", 1)
    n_turns = 0
    for epoch in range(2):
        ours = batches(rank, data[rank], epoch)
        for turn, x in enumerate(scheduler.join(ours, divide_by)):
            n_turns += 1
            is_last = turn % every == every - 1
            with nullcontext() if is_last else scheduler.no_sync():
                if x is None:
                    scheduler.skip_backward()
                else:
                    torch.cos(net(x)).mean().backward()
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    scheduler.detach()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    return dict(net.state_dict()), momenta, n_turns


def alone(data: tuple[int, ...], divide_by: str, accumulate: int) -> tuple[Weights, int]:
    """What ``joined`` should come to, in one process."""
    torch.manual_seed(0)
    net = Residual()
    optimizer = optimizer_of(net)
    n_turns = 0
    for epoch in range(2):
        of_rank = [batches(rank, n, epoch) for rank, n in enumerate(data)]
        for first in range(0, max(data), accumulate):
            window = [has[first : first + accumulate] for has in of_rank]
            n_turns += max(map(len, window))
            if max(map(len, window)) < accumulate:
                continue  # the loop makes no step of a window that is not full
            loss = sum(torch.cos(net(x)).mean() for has in window for x in has)
            divisor = len(data) if divide_by == "all" else sum(map(bool, window))
            (loss / divisor).backward()
            optimizer.step()
            optimizer.zero_grad()
    return dict(net.state_dict()), n_turns


def check(data: tuple[int, ...], divide_by: str, **options: Any) -> None:
    ranks = run_ranks(len(data), joined, data, divide_by, options)
    expected, n_turns = alone(data, divide_by, options.get("accumulate", 1))
    first = ranks[0]
    for weights, momenta, turns in ranks:
        assert turns == n_turns
        for name, value in weights.items():
            assert torch.equal(value, first[0][name]), name
            torch.testing.assert_close(value, expected[name], rtol=2e-5, atol=1e-6, msg=name)
        assert all(map(torch.equal, momenta, first[1])), "the optimizers went on alike"


@pytest.mark.parametrize("divide_by", ["all", "active"])
@pytest.mark.parametrize("data", DATA)
def test_every_batch_counts_and_the_ranks_stay_alike(data: str, divide_by: str) -> None:
    check(DATA[data], divide_by)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "negotiated"},
        {"schedule": "auto"},
        {"planner": "auto", "record_every_n_steps": 1},
        {"hook": "allreduce_hook"},
        {"reduce_dtype": "fp32"},
        {"accumulate": 2},
        {"accumulate": 4, "schedule": "negotiated"},
    ],
    ids=str,
)
@pytest.mark.parametrize("divide_by", ["all", "active"])
def test_it_goes_with(options: dict[str, Any], divide_by: str) -> None:
    # Long enough for planning from measurements and its trial, with and without rank 1.
    check((40, 9), divide_by, **options)


class Losses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)


def two_backwards_a_turn(rank: int, divide_by: str) -> list[list[Tensor | None]]:
    torch.manual_seed(0)
    net = Losses()
    scheduler = GradientScheduler(net, GradSchedConfig(planner="per_tensor"))
    seen = []
    for x in scheduler.join(batches(rank, 3 - 2 * rank, 0), divide_by):
        net.zero_grad()
        for used in ("ab", "a"):
            if x is None:
                scheduler.skip_backward()
                continue
            loss = sum(getattr(net, name)(x).sum() for name in used)
            scheduler.prepare(loss)
            loss.backward()
        seen.append([p.grad.clone() for p in net.parameters()])
    return seen


@pytest.mark.parametrize(("divide_by", "share"), [("all", 0.5), ("active", 1.0)])
def test_several_backwards_a_turn_add_up(divide_by: str, share: float) -> None:
    ranks = run_ranks(2, two_backwards_a_turn, divide_by)
    data = [[x.sum(0, keepdim=True) for x in batches(rank, 3 - 2 * rank, 0)] for rank in range(2)]
    for seen in ranks:
        for turn, (a, a_bias, b, b_bias) in enumerate(seen):
            has = [of_rank[turn] for of_rank in data if turn < len(of_rank)]
            mean = sum(has) * (0.5 if len(has) == 2 else share)
            torch.testing.assert_close(a, 2 * mean)
            torch.testing.assert_close(b, mean)
            assert a_bias == 2 * b_bias == (6.0 if len(has) == 2 else 6.0 * share)


def normalized(rank: int, data: tuple[int, int], accumulate: int) -> tuple[Weights, int]:
    """A net with buffers, which are sent before forwards: also where a rank runs none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4))
    scheduler = GradientScheduler(net)
    n_turns = 0
    for turn, x in enumerate(scheduler.join(batches(rank, data[rank], 0))):
        n_turns += 1
        with nullcontext() if turn % accumulate == accumulate - 1 else scheduler.no_sync():
            if x is None:
                scheduler.skip_backward()
            else:
                net(x).square().sum().backward()
    scheduler.sync_buffers()
    return dict(net.state_dict()), n_turns


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_rank_that_runs_no_forward_takes_part_in_sending_the_buffers(accumulate: int) -> None:
    (first, n_turns), (second, n_turns_of_second) = run_ranks(2, normalized, (2, 7), accumulate)
    assert n_turns == n_turns_of_second == 7
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def frozen_until_rank_1_is_out(rank: int) -> list[bool]:
    torch.manual_seed(0)
    net = Residual()
    net.side.requires_grad_(False)
    scheduler = GradientScheduler(net, GradSchedConfig(planner="per_tensor"))
    seen = []
    for turn, x in enumerate(scheduler.join(batches(rank, 4 - 3 * rank, 0))):
        net.zero_grad()
        if turn == 2:
            net.side.requires_grad_(True)
        if x is None:
            scheduler.skip_backward()
        else:
            net(x).sum().backward()
        seen.append(net.side.weight.grad is not None)
    return seen


def test_a_layer_may_be_unfrozen_while_a_rank_is_out() -> None:
    assert run_ranks(2, frozen_until_rank_1_is_out) == [[False, False, True, True]] * 2


def forgets_to_skip(rank: int) -> None:
    net = Residual()
    scheduler = GradientScheduler(net, GradSchedConfig(stall_timeout_s=20.0))
    for x in scheduler.join(batches(rank, 2 - rank, 0)):
        if x is not None:
            net(x).sum().backward()


def test_a_loop_that_takes_no_part_is_told_how() -> None:
    other, out = errors_of_ranks(2, forgets_to_skip)
    assert "skip_backward() for the batch of None that join gave to rank 1" in out
    assert other.startswith("ReductionError")


def refused(rank: int, kind: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4) if kind == "norm" else nn.Identity())
    scheduler = GradientScheduler(net)
    divide_by = {"norm": "all", "word": "some", "unlike": ("all", "active")[rank]}[kind]
    next(scheduler.join([torch.ones(1, 4)], divide_by))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("norm", "GradSchedError: expected layers whose forward needs no other rank"),
        ("word", "ValueError: divide_by: expected one of ('all', 'active'), got 'some'"),
        ("unlike", "ConsensusError: the ranks have different settings: divide_by is 'all' on"),
    ],
)
def test_what_cannot_be_is_refused_on_all_ranks(kind: str, message: str) -> None:
    for error in errors_of_ranks(2, refused, kind):
        assert error.startswith(message)


def left_early(rank: int) -> list[int]:
    net = Residual()
    scheduler = GradientScheduler(net)
    n_turns = []
    for _ in range(2):
        n_turns.append(0)
        for x in scheduler.join(batches(rank, 4, 0)):
            net(deepcopy(x)).sum().backward()
            n_turns[-1] += 1
            if n_turns[-1] == 2:
                break
    net(batches(rank, 1, 0)[0]).sum().backward()
    return n_turns


def test_all_ranks_may_leave_a_pass_before_its_end() -> None:
    assert run_ranks(2, left_early) == [[2, 2]] * 2


@pytest.mark.slow
def test_the_documented_loop_leaves_the_ranks_alike(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "uneven-data.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    script = tmp_path / "loop.py"
    script.write_text(next(block for block in blocks if "init_process_group" in block))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    weights = dict(re.findall(r"rank (\d): weight (\[\[.*?\]\])", result.stdout))
    assert len(weights) == 2
    assert weights["0"] == weights["1"]
