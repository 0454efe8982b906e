"""Behaviours that DDP's own tests hold it to, and that no other file here is about."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.reference import average_gradients
from tests.ranks import errors_of_ranks, run_ranks

WIDTH = 4
CONFIG = GradSchedConfig(planner="per_tensor")
Grads = list[Tensor]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Fields:
    first: Tensor
    second: Tensor


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "named tuple": Pair,
    "dataclass": Fields,
    "nested": lambda a, b: {"a": [a], "b": ((b,), "and a word", None)},
    "one without a gradient": lambda a, b: (a, b.detach()),
    "one made anew": lambda a, b: (a, torch.zeros_like(b) + b),
}


class Two(nn.Module):
    def __init__(self, container: str = "named tuple") -> None:
        super().__init__()
        self.container = container
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return CONTAINERS[self.container](self.a(x), self.b(x))


def batch(rank: int) -> Tensor:
    return torch.full((2, WIDTH), 0.1 * (rank + 1))


def loss_of(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out.square().sum()
    if isinstance(out, Fields):
        return loss_of((out.first, out.second))
    parts = out.values() if isinstance(out, dict) else out
    return sum(loss_of(p) for p in parts if isinstance(p, (Tensor, list, tuple)))


def grads_of(net: nn.Module) -> Grads:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def beside_reference(net: nn.Module, backward: Callable[[nn.Module], None]) -> bool:
    """Whether three backwards with the engine give what one rank alone gives, averaged."""
    plain = deepcopy(net)
    GradientScheduler(net, CONFIG)
    equal = []
    for _ in range(3):
        for module in (net, plain):
            module.zero_grad()
            backward(module)
        average_gradients(plain)
        pairs = zip(grads_of(net), grads_of(plain), strict=True)
        equal.append(all(torch.equal(a, b) for a, b in pairs))
    return all(equal)


def contained(rank: int, container: str) -> bool:
    torch.manual_seed(0)
    return beside_reference(Two(container), lambda net: loss_of(net(batch(rank))).backward())


@pytest.mark.parametrize("container", CONTAINERS)
def test_outputs_are_met_in_any_container(container: str) -> None:
    assert run_ranks(2, contained, container) == [True, True]


def no_outputs(rank: int) -> bool:
    torch.manual_seed(0)
    net = nn.ModuleDict({"some": nn.Linear(WIDTH, 2), "none": nn.Linear(WIDTH, 0)})

    def backward(module: nn.Module) -> None:
        x = batch(rank)
        (loss_of(module["some"](x)) + module["none"](x).sum()).backward()

    return beside_reference(net, backward)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_of_no_outputs_is_reduced_with_the_others() -> None:
    assert run_ranks(2, no_outputs) == [True, True]


def changed_in_place(rank: int) -> bool:
    torch.manual_seed(0)
    return beside_reference(
        nn.Linear(WIDTH, 2), lambda net: net(batch(rank)).mul_(2).square().sum().backward()
    )


def test_an_output_may_be_changed_in_place() -> None:
    assert run_ranks(2, changed_in_place) == [True, True]


def nothing_to_train(rank: int) -> None:
    GradientScheduler(nn.ReLU())


def test_a_module_with_nothing_to_train_is_refused() -> None:
    for message in errors_of_ranks(2, nothing_to_train):
        assert message == "GradSchedError: ReLU has no parameters to train"


def profiled(rank: int) -> set[str]:
    net = Two()
    GradientScheduler(net, CONFIG)
    loss_of(net(batch(rank))).backward()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loss_of(net(batch(rank))).backward()
    return {event.key for event in seen.key_averages()}


def test_reductions_show_in_pytorchs_profiler() -> None:
    for names in run_ranks(2, profiled):
        assert any("all_reduce" in name for name in names), names


def functional(rank: int) -> tuple[bool, bool]:
    net = nn.Linear(WIDTH, 1)
    GradientScheduler(net, CONFIG)
    given = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    loss_of(torch.func.functional_call(net, given, batch(rank))).backward()
    local = torch.autograd.grad(loss_of(net(batch(rank))), list(net.parameters()))
    untouched = all(p.grad is None for p in net.parameters())
    return untouched, all(
        torch.equal(a.grad, b) for a, b in zip(given.values(), local, strict=True)
    )


def test_parameters_given_to_a_functional_call_are_left_alone() -> None:
    assert run_ranks(2, functional) == [(True, True)] * 2


def hooked(rank: int) -> tuple[list[str], bool]:
    torch.manual_seed(0)
    net = nn.Linear(WIDTH, 2)
    plain = deepcopy(net)
    ran: list[str] = []
    net.register_forward_hook(lambda *_: ran.append("forward"))
    GradientScheduler(net, CONFIG)
    net.register_full_backward_hook(lambda *_: ran.append("backward"))
    net.bias.register_hook(lambda grad: 2 * grad)
    loss_of(net(batch(rank))).backward()
    loss_of(plain(batch(rank))).backward()
    average_gradients(plain)
    doubled = torch.equal(net.bias.grad, 2 * plain.bias.grad)
    return ran, doubled and torch.equal(net.weight.grad, plain.weight.grad)


def test_the_users_module_hooks_run_and_count() -> None:
    assert run_ranks(2, hooked) == [(["forward", "backward"], True)] * 2


def in_another_group(rank: int) -> list[Tensor]:
    """First all three ranks, then ranks 0 and 1 in one group and rank 2 in another."""
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    net = nn.Linear(WIDTH, 1, bias=False)
    grads = []
    for group in (None, groups[rank // 2]):
        scheduler = GradientScheduler(net, CONFIG, process_group=group)
        net.zero_grad()
        net(torch.full((1, WIDTH), float(rank))).sum().backward()
        grads.append(net.weight.grad[0, 0].clone())
        scheduler.detach()
    return grads


def test_an_engine_may_be_made_anew_in_another_group() -> None:
    means = [[float(g) for g in grads] for grads in run_ranks(3, in_another_group)]
    assert means == [[1.0, 0.5], [1.0, 0.5], [1.0, 2.0]]
