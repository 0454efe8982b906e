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
    """Two ranks, of which the other has ones for gradients: the mean is (ours + 1) / 2."""

    world_size = 2

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def all_reduce(self, flat: Tensor) -> Work:
        self.log.append(f"launch {flat.numel()}")
        flat.add_(0.5)
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
    net.zero_grad(set_to_none=False)
    backward(reducer, net(torch.ones(1)))
    plain = Chain([])
    plain(torch.ones(1)).sum().backward()
    for param, view, other in zip(net.parameters(), views, plain.parameters(), strict=True):
        assert param.grad is view
        assert torch.equal(view, (other.grad + 1) / 2)


def test_muted_gradients_are_reduced_with_the_next_ones() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, [["weights.2", "weights.1", "weights.0"]], log)
    before = reducer.mute()
    backward(reducer, net(torch.ones(1)))
    reducer.resume(before)
    local = net.weights[2].grad.clone()
    assert "launch 12" not in log
    # Only layer 0 is in this graph; what the others hold from before counts all the same.
    backward(reducer, net(torch.ones(1), used=(0,)))
    assert log[-2:] == ["launch 12", "wait 12"]
    assert torch.equal(net.weights[2].grad, (local + 1) / 2)


def uncertain(reducer: Reducer, loss: Tensor) -> Tensor:
    """``loss`` watched as an output of the module's is: it may be differentiated either way."""
    loss.register_hook(lambda _: reducer.begin([loss.grad_fn], certain=False))
    return loss


@pytest.mark.parametrize("partial_before", [False, True])
def test_autograd_grad_launches_nothing(partial_before: bool) -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log)
    if partial_before:  # from then on the engine is asked what will come
        backward(reducer, net(torch.ones(1), used=(0, 1)))
    net.zero_grad()
    log.clear()
    x = torch.ones(1, requires_grad=True)
    loss = uncertain(reducer, net(x).sum())
    torch.autograd.grad(loss, x, retain_graph=True)
    torch.autograd.grad(loss, net.weights[0], retain_graph=True)
    assert not any(entry.startswith(("launch", "wait")) for entry in log)
    loss.backward()
    assert [entry for entry in log if entry.startswith("launch")] == [
        *("launch 5", "launch 4", "launch 3")
    ]


def test_a_backward_that_raised_is_cleared_away_by_the_next() -> None:
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log)
    loss = uncertain(reducer, net(torch.ones(1)).sum())
    handle = net.weights[0].register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward(retain_graph=True)
    handle.remove()
    net.zero_grad()
    log.clear()
    loss.backward()  # the same graph again, with no forward between
    assert log[:4] == ["launch 3", "wait 5", "wait 4", "wait 3"], (
        "the old cycle is brought to an end"
    )
    assert log[4:7] == ["layer 2", "launch 5", "layer 1"], "and the new backward overlaps as ever"
    assert all(weight.grad.isfinite().all() for weight in net.weights)


def test_a_gradient_that_is_gone_before_the_reduction_does_not_count() -> None:
    net = Chain([])
    reducer = attach(net, [["weights.2", "weights.1", "weights.0"]], [])
    backward(reducer, net(torch.ones(1)))
    net.zero_grad()
    before = reducer.mute()
    backward(reducer, net(torch.ones(1)))
    reducer.resume(before)
    net.zero_grad()  # the micro-batch is thrown away
    backward(reducer, net(torch.ones(1), used=(0,)))
    # Nothing of ours: zeros, and the other rank's ones.
    assert torch.equal(net.weights[2].grad, torch.full((4, 1), 0.5))


def test_kept_gradients_outlive_an_autograd_grad() -> None:
    net = Chain([])
    reducer = attach(net, EACH_ALONE, [])
    before = reducer.mute()
    backward(reducer, net(torch.ones(1)))
    reducer.resume(before)
    local = net.weights[2].grad.clone()
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(uncertain(reducer, net(x).sum()), x)
    backward(reducer, net(torch.ones(1), used=(0,)))
    assert torch.equal(net.weights[2].grad, (local + 1) / 2)


def test_a_parameter_that_fires_before_the_root_is_seen_does_not_end_the_overlap() -> None:
    """As ``net(x) * net.scale``: the scale's gradient comes before the output's."""
    log: list[str] = []
    net = Chain(log)
    reducer = attach(net, EACH_ALONE, log)
    for _ in range(2):  # the walk from the output does not meet the scale: once it must be seen
        log.clear()
        out = uncertain(reducer, net(torch.ones(1), used=(0, 1)))
        (out * net.weights[2]).sum().backward()
    assert log == [
        *("layer 1", "launch 5", "launch 4", "layer 0", "launch 3"),
        *("wait 5", "wait 4", "wait 3"),
    ]


def test_parameters_added_later_join_by_a_new_plan() -> None:
    log: list[str] = []
    net = Chain(log)
    (name, first), *rest = net.named_parameters()
    seen: list[list[str]] = []

    def plan(blocks: list[list[str]]) -> tuple[GroupPlan, ReductionSchedule]:
        seen.append([name for block in blocks for name in block])
        made = GroupPlan("test", tuple(map(tuple, blocks)))
        return made, lower(made)

    reducer = Reducer({name: first}, Network(log), plan)
    backward(reducer, net(torch.ones(1)))
    before = reducer.mute()
    backward(reducer, net(torch.ones(1)))
    reducer.resume(before)
    reducer.add(dict(rest))
    net.weights[0].grad.zero_()
    backward(reducer, net(torch.ones(1), used=(1, 2)))
    assert seen == [["weights.0"], ["weights.2", "weights.1"]]
    reducer.detach()


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
    with pytest.raises(ReductionError, match=r"sparse ones of \['weight'\].*sparse=True"):
        backward(reducer, net(torch.tensor([1, 2])))
