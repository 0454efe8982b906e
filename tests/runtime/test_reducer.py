"""The reducer over a network that only notes what it is asked, in one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule, lower
from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.reducer import Reducer
from tests.parity.nets import WIDTH


class Network:
    """Two ranks of which the other contributes the same: the sum is twice our own."""

    world_size = 2

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def all_reduce(self, flat: Tensor) -> Work:
        self.log.append(f"launch {flat.numel()}")
        flat.mul_(2)
        return Work(self.log, flat.numel())


class Work:
    def __init__(self, log: list[str], numel: int) -> None:
        self.log, self.numel = log, numel

    def wait(self) -> None:
        self.log.append(f"wait {self.numel}")


class Chain(nn.Module):
    """Three layers of one parameter each; ``log`` notes when a layer's backward begins."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.weights = nn.ParameterList(nn.Parameter(torch.full((n, 1), 0.5)) for n in (2, 3, 4))

    def forward(self, x: Tensor, used: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        for i in used:
            x = (x * self.weights[i]).sum() * torch.ones(1)
            x.register_hook(lambda _grad, i=i: self.log.append(f"layer {i}"))
        return x


def attach(net: nn.Module, groups: list[list[str]], log: list[str], order: str = "") -> Reducer:
    plan = GroupPlan("test", tuple(map(tuple, groups)))
    schedule = ReductionSchedule.parse(order) if order else lower(plan)
    return Reducer(dict(net.named_parameters()), Network(log), lambda seen: (plan, schedule))


def backward(reducer: Reducer, loss: Tensor) -> None:
    root = loss.sum()
    root.register_hook(lambda _: reducer.begin([root.grad_fn], certain=True))
    root.backward()


EACH_ALONE = [["weights.2"], ["weights.1"], ["weights.0"]]


def test_groups_leave_while_backward_runs_and_are_waited_for_at_its_end() -> None:
    log: list[str] = []
    net = Chain(log)
    backward(attach(net, EACH_ALONE, log), net(torch.ones(1)))
    assert log == [
        *("layer 2", "launch 5", "layer 1", "launch 4", "layer 0", "launch 3"),
        *("wait 5", "wait 4", "wait 3"),
    ]


def test_launches_keep_the_schedules_order_when_gradients_come_in_another() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log, order="R1 R0 R2 W2 W1 W0")
    backward(reducer, net(torch.ones(1)))
    assert log == [
        *("layer 2", "layer 1", "launch 4", "launch 5", "layer 0", "launch 3"),
        *("wait 3", "wait 4", "wait 5"),
    ]


def test_a_member_once_seen_to_be_missing_holds_its_group_up_no_longer() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log)
    backward(reducer, net(torch.ones(1)))
    log.clear()
    backward(reducer, net(torch.ones(1), used=(0, 1)))
    assert log[:4] == ["layer 1", "layer 0", "launch 5", "launch 4"], "the first time is a surprise"
    log.clear()
    backward(reducer, net(torch.ones(1), used=(0, 1)))
    assert log[:5] == ["launch 5", "layer 1", "launch 4", "layer 0", "launch 3"]
    log.clear()
    backward(reducer, net(torch.ones(1)))
    assert log[:2] == ["layer 2", "launch 5"], "and it is waited for again when it comes back"


def test_grad_is_a_view_of_the_bucket_and_nothing_is_copied_while_it_stays_one() -> None:
    net = Chain([])
    reducer = attach(net, [["weights.2", "weights.1", "weights.0"]], [])
    backward(reducer, net(torch.ones(1)))
    (bucket,) = reducer.buckets
    views = [p.grad for p in net.parameters()]
    assert all(v.untyped_storage().data_ptr() == bucket.flat.data_ptr() for v in views)
    first = [v.clone() for v in views]
    net.zero_grad(set_to_none=False)
    backward(reducer, net(torch.ones(1)))
    for param, view, value in zip(net.parameters(), views, first, strict=True):
        assert param.grad is view
        assert torch.equal(view, value)


def test_muted_gradients_are_reduced_with_the_next_ones() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, [["weights.2", "weights.1", "weights.0"]], log)
    reducer.mute()
    backward(reducer, net(torch.ones(1)))
    reducer.unmute()
    local = net.weights[2].grad.clone()
    assert "launch 12" not in log
    # Only layer 0 is in this graph; what the others hold from before counts all the same.
    backward(reducer, net(torch.ones(1), used=(0,)))
    assert log[-2:] == ["launch 12", "wait 12"]
    assert torch.equal(net.weights[2].grad, local)


def test_autograd_grad_and_an_exception_leave_no_cycle_open() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log)
    x = torch.ones(1, requires_grad=True)
    loss = net(x).sum()
    loss.register_hook(lambda _: reducer.begin([loss.grad_fn], certain=False))
    torch.autograd.grad(loss, x)
    assert not any(entry.startswith("launch") for entry in log)

    bad = net(torch.ones(1))
    net.weights[0].register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backward(reducer, bad)
    reducer.abandon_if_stale()
    assert log[-2:] == ["wait 5", "wait 4"], "what had been launched is waited for"


def test_detach_leaves_plain_autograd() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log)
    reducer.detach()
    net(torch.ones(1)).sum().backward()
    assert not any(entry.startswith("launch") for entry in log)


def test_a_sparse_gradient_is_refused_by_name() -> None:
    net = nn.Embedding(10, WIDTH, sparse=True)
    reducer = attach(net, [["weight"]], [])
    with pytest.raises(ReductionError, match=r"sparse ones of \['weight'\].*sparse=False"):
        backward(reducer, net(torch.tensor([1, 2])))
