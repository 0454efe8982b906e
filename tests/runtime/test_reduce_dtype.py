"""Gradients that travel in another dtype than their own, on real ranks."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH, Residual
from tests.ranks import errors_of_ranks, run_ranks
from tests.runtime.branches import Branches

Grads = dict[str, Tensor]


def train(net: nn.Module, forward: nn.Module, rank: int) -> list[Grads]:
    generator = torch.Generator().manual_seed(100 + rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    steps = []
    for _ in range(4):
        optimizer.zero_grad()
        torch.cos(forward(torch.randn(3, WIDTH, generator=generator))).mean().backward()
        steps.append({n: p.grad.clone() for n, p in net.named_parameters()})
        optimizer.step()
    return steps


def beside_hook(rank: int, dtype: str) -> tuple[list[Grads], list[Grads]]:
    torch.manual_seed(0)
    ours = Residual()
    theirs = deepcopy(ours)
    GradientScheduler(ours, GradSchedConfig(reduce_dtype=dtype))
    forward: nn.Module
    if dtype == "fp16":
        forward = DistributedDataParallel(theirs)
        forward.register_comm_hook(None, default_hooks.fp16_compress_hook)
    else:  # DDP refuses that hook without CUDA
        forward = theirs
        GradientScheduler(theirs).register_comm_hook(None, default_hooks.bf16_compress_hook)
    return train(ours, ours, rank), train(theirs, forward, rank)


@pytest.mark.parametrize("dtype", ["fp16", "bfloat16"])
def test_it_is_what_the_compress_hooks_do(dtype: str) -> None:
    ranks = run_ranks(2, beside_hook, dtype)
    for ours, theirs in ranks:
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            for name, grad in a.items():
                assert grad.dtype is torch.float32
                assert torch.equal(grad, b[name]), (step, name)
                assert torch.equal(grad, ranks[0][0][step][name]), (step, name, "across ranks")


def widened(rank: int, param_dtype: torch.dtype) -> Tensor:
    net = nn.Linear(4, 1, bias=False).to(param_dtype)
    GradientScheduler(net, GradSchedConfig(reduce_dtype="fp32"))
    # The mean over three ranks of 256, 1 and 1: in bfloat16 each 1 is lost in the sum.
    share = [256.0, 1.0, 1.0][rank]
    net(torch.full((1, 4), share, dtype=param_dtype)).sum().backward()
    return net.weight.grad.clone()


def test_narrow_gradients_may_be_summed_in_a_wide_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        for grad in run_ranks(3, widened, dtype):
            assert grad.dtype is dtype
            torch.testing.assert_close(
                grad, torch.full((1, 4), 86.0, dtype=dtype), rtol=1e-6, atol=0
            )


def overflowing(rank: int) -> tuple[Tensor, Tensor]:
    net = nn.Linear(4, 1)
    GradientScheduler(net, GradSchedConfig(reduce_dtype="float16"))
    x = torch.tensor([[1.0, 1e6, float("nan"), -1e6]]) if rank == 1 else torch.ones(1, 4)
    net(x).sum().backward()
    return net.weight.grad.clone(), net.bias.grad.clone()


def test_what_the_dtype_cannot_hold_is_inf_on_all_ranks() -> None:
    inf, nan = float("inf"), float("nan")
    for weight, bias in run_ranks(2, overflowing):
        torch.testing.assert_close(weight, torch.tensor([[1.0, inf, nan, -inf]]), equal_nan=True)
        assert bias == 1.0


def partly_used(rank: int, dtype: str) -> dict[str, bool]:
    net = Branches()
    GradientScheduler(net, GradSchedConfig(planner="single", reduce_dtype=dtype))
    # A gradient of inf shares the buffer with the counts.
    net(torch.full((2, WIDTH), 1e30), "ab" if rank == 2 else "a").sum().backward()
    return {name: p.grad is not None for name, p in net.named_parameters()}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_counts_of_use_stay_exact(dtype: str) -> None:
    for has_grad in run_ranks(3, partly_used, dtype):
        assert has_grad == {f"{n}.{p}": n != "c" for n in "abc" for p in ("weight", "bias")}


def complex_net(rank: int, dtype: str | None) -> Tensor:
    net = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    GradientScheduler(net, GradSchedConfig(reduce_dtype=dtype))
    x = torch.tensor([[1 + 2j, 3 - 1j]]) * (rank + 1)
    net(x).real.sum().backward()
    return net.weight.grad.clone()


def test_complex_gradients_travel_as_pairs() -> None:
    for dtype in (None, "bf16", "fp32"):
        for grad in run_ranks(2, complex_net, dtype):
            assert torch.equal(grad, torch.tensor([[1.5 - 3j, 4.5 + 1.5j]]))


def unlike(rank: int) -> None:
    GradientScheduler(nn.Linear(1, 1), GradSchedConfig(reduce_dtype=[None, "bf16"][rank]))


def test_ranks_must_agree_on_it() -> None:
    for message in errors_of_ranks(2, unlike):
        assert "reduce_dtype is None on rank 0 and 'bf16' on rank 1" in message


def mixed(rank: int) -> list[Any]:
    torch.manual_seed(0)
    ours = Mixed()
    theirs = deepcopy(ours)
    GradientScheduler(ours)
    ddp = DistributedDataParallel(theirs)
    pairs = []
    for step in range(3):
        for net, forward in ((ours, ours), (theirs, ddp)):
            net.zero_grad()
            forward(torch.full((2, 1, 6, 6), 0.1 * (rank + 1 + step))).backward()
        both = zip(ours.named_parameters(), theirs.parameters(), strict=True)
        pairs += [(n, p.stride(), p.grad.clone(), q.grad.clone()) for (n, p), q in both]
    return pairs


class Mixed(nn.Module):
    """Channels-last convolutions, half precision and complex numbers in one net."""

    def __init__(self) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3)
        self.encode = nn.Sequential(conv(1, 4), nn.Tanh(), conv(4, 3))
        self.encode.to(memory_format=torch.channels_last)
        self.narrow = nn.Linear(12, 5).to(torch.bfloat16)
        self.phase = nn.Linear(5, 2, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.narrow(self.encode(x).flatten(1).to(torch.bfloat16)).float()
        return self.phase(torch.polar(torch.ones_like(hidden), hidden)).abs().square().mean()


def test_dtypes_and_strides_in_one_net_are_as_in_ddp() -> None:
    for pairs in run_ranks(2, mixed):
        assert {grad.dtype for _, _, grad, _ in pairs} == {
            *(torch.float32, torch.bfloat16, torch.complex64)
        }
        for name, strides, ours, theirs in pairs:
            assert ours.stride() == strides, name
            assert torch.equal(ours, theirs), name
