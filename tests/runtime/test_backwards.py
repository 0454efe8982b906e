"""Unusual backwards: beside the same on one rank, averaged afterwards by the slow reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH, Residual
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks

Grads = dict[str, Tensor | None]


def retained(net: nn.Module, x: Tensor) -> None:
    loss = net(x).square().mean()
    loss.backward(retain_graph=True)
    (3 * loss).backward()


def several_losses(net: nn.Module, x: Tensor) -> None:
    for scale in (1.0, 0.5, 2.0):
        net(scale * x).square().mean().backward()


def two_losses_of_one_output(net: nn.Module, x: Tensor) -> None:
    out = net(x)
    out.square().mean().backward(retain_graph=True)
    out.sum().backward()


def penalty_on_parameters(net: nn.Module, x: Tensor) -> None:
    """Double backward: of the norm of the gradient itself, as in MAML and sharpness penalties."""
    loss = net(x).square().mean()
    grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    (loss + sum(grad.square().sum() for grad in grads)).backward()


def penalty_on_inputs(net: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    out = net(x).square().sum()
    (slope,) = torch.autograd.grad(out, x, create_graph=True)
    (out + (slope.norm() - 1).square()).backward()


def gradient_looked_at_before(net: nn.Module, x: Tensor) -> None:
    loss = net(x).square().mean()
    torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    torch.autograd.grad(loss, next(net.parameters()), retain_graph=True)
    loss.backward()


def with_graph_of_gradients(net: nn.Module, x: Tensor) -> None:
    warnings.simplefilter("ignore")  # torch's, of the reference cycle
    net(x).square().mean().backward(create_graph=True)


def of_some_parameters(net: nn.Module, x: Tensor) -> None:
    net(x).square().mean().backward(inputs=list(net.blocks.parameters()))


BACKWARDS: list[Callable[[nn.Module, Tensor], None]] = [
    retained,
    several_losses,
    two_losses_of_one_output,
    penalty_on_parameters,
    penalty_on_inputs,
    gradient_looked_at_before,
    with_graph_of_gradients,
    of_some_parameters,
]


def grads_of(net: nn.Module) -> Grads:
    return {
        n: None if p.grad is None else p.grad.detach().clone() for n, p in net.named_parameters()
    }


def steps(
    rank: int, backward: Callable[[nn.Module, Tensor], None], planner: str
) -> list[tuple[Grads, Grads]]:
    torch.manual_seed(0)
    ours = Residual()
    plain = deepcopy(ours)
    GradientScheduler(ours, GradSchedConfig(planner=planner))
    pairs = []
    for step in range(3):
        x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))
        for net in (ours, plain):
            net.zero_grad()
            backward(net, x)
        average_gradients(plain)
        pairs.append((grads_of(ours), grads_of(plain)))
    return pairs


@pytest.mark.parametrize("planner", ["single", "per_tensor"])
@pytest.mark.parametrize("backward", BACKWARDS)
def test_it_is_reduced_as_the_reference(
    backward: Callable[[nn.Module, Tensor], None], planner: str
) -> None:
    ranks = run_ranks(2, steps, backward, planner)
    for pairs in ranks:
        for step, (ours, reference) in enumerate(pairs):
            for name, grad in reference.items():
                where = (step, name)
                if grad is None:
                    assert ours[name] is None, where
                    continue
                # Of several backwards each is averaged, not the sum: another rounding.
                torch.testing.assert_close(ours[name], grad, rtol=1e-5, atol=1e-6, msg=str(where))
                assert torch.equal(ours[name], ranks[0][step][0][name]), where


def beside_ddp(rank: int) -> list[tuple[Grads, Grads]]:
    torch.manual_seed(0)
    ours = Residual()
    theirs = deepcopy(ours)
    GradientScheduler(ours, GradSchedConfig(planner="per_tensor"))
    ddp = DistributedDataParallel(theirs)
    pairs = []
    for step in range(3):
        x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))
        for net, forward in ((ours, ours), (theirs, ddp)):
            net.zero_grad()
            several_losses(forward, x)
        pairs.append((grads_of(ours), grads_of(theirs)))
    return pairs


def test_several_backwards_a_step_are_bit_for_bit_those_of_ddp() -> None:
    for pairs in run_ranks(2, beside_ddp):
        for ours, theirs in pairs:
            assert all(torch.equal(grad, theirs[name]) for name, grad in ours.items())
