"""What cannot overlap, and what happens when things break while groups are open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.lazy import is_lazy
from tests.ranks import errors_of_ranks, run_ranks, tell, until_told
from tests.runtime.overlapping import WIDTH, adam, engine, nets, one_step, overlapped


def a_step_that_raises(rank: int) -> None:
    net, _, scheduler, _ = overlapped(rank)
    scheduler.flush()

    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if closure is not None:
                closure()
                raise ZeroDivisionError

    trusted = engine_trusting(net, scheduler, "Fails")
    optimizer = Fails(net.parameters(), lr=0.1)
    trusted.overlap(optimizer)
    with pytest.raises(ZeroDivisionError):
        one_step(net, optimizer, rank)
    trusted.flush()
    with pytest.raises(ZeroDivisionError):
        one_step(net, optimizer, rank)
    trusted.detach()
    assert len(optimizer.param_groups[0]["params"]) == 3


def engine_trusting(net: nn.Module, old: GradientScheduler, name: str) -> GradientScheduler:
    old.detach()
    return engine(net, per_parameter_optimizers=(name,))


def test_a_step_that_raises_leaves_the_parameter_groups_whole() -> None:
    run_ranks(2, a_step_that_raises)


def refusals(rank: int) -> list[str]:
    net, _ = nets()
    scheduler = engine(net)
    messages = []
    for optimizer in (
        torch.optim.LBFGS(net.parameters()),
        torch.optim.SGD(net.parameters(), lr=0.1, differentiable=True),
    ):
        with pytest.raises(GradSchedError) as error:
            scheduler.overlap(optimizer)
        messages.append(str(error.value))
    with pytest.raises(GradSchedError) as error:
        scheduler.register_comm_hook(None, refusals)
    messages.append(str(error.value))
    scheduler.detach()
    plain = GradientScheduler(net)
    with pytest.raises(GradSchedError) as error:
        plain.overlap(adam(net))
    return [*messages, str(error.value)]


def test_what_cannot_overlap_is_refused_by_name() -> None:
    whole, differentiable, hook, without = run_ranks(2, refusals)[0]
    assert "LBFGS is not known to update each parameter from its own gradient alone" in whole
    assert "per_parameter_optimizers=('LBFGS',)" in whole
    assert "expected differentiable=False of SGD" in differentiable
    assert "expected overlap_forward=False with a communication hook" in hook
    assert "expected overlap_forward=True, got False" in without


def test_the_order_into_the_forward_is_a_static_one() -> None:
    with pytest.raises(ValueError, match=r"expected schedule='static'.*got schedule='auto'"):
        GradSchedConfig(overlap_forward=True, schedule="auto")


def cut_off(rank: int) -> bool:
    """All ranks catch an exception in the midst of a backward, and go on."""
    net, _ = nets()
    scheduler, optimizer = engine(net), adam(net)
    scheduler.overlap(optimizer)
    one_step(net, optimizer, rank)

    def fail(_grad: Tensor) -> None:
        raise ZeroDivisionError

    handle = net.middle.weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        one_step(net, optimizer, rank, 1)
    handle.remove()
    one_step(net, optimizer, rank, 2)
    scheduler.flush()
    return all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_backward_that_was_cut_off_leaves_nothing_open() -> None:
    assert run_ranks(2, cut_off) == [True, True]


def unfrozen(rank: int) -> bool:
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        net.stem.requires_grad_(False)
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(5):
            if step == 2:
                net.stem.requires_grad_(True)
            one_step(net, optimizer, rank, step)
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_what_is_unfrozen_is_reduced_from_then_on() -> None:
    assert run_ranks(2, unfrozen) == [True, True]


def dropped(rank: int) -> bool:
    """A gradient that is set to None while it is under way."""
    net, _ = nets()
    scheduler, optimizer = engine(net), adam(net)
    scheduler.overlap(optimizer)
    net(torch.ones(WIDTH)).sum().backward()
    before = net.stem.weight.clone()
    net.stem.weight.grad = None
    assert scheduler.n_open == 2
    optimizer.step()
    scheduler.flush()
    return net.stem.weight.grad is None and torch.equal(net.stem.weight, before)


def test_a_gradient_that_is_dropped_while_it_is_under_way_updates_nothing() -> None:
    assert run_ranks(2, dropped) == [True, True]


def unannounced(rank: int) -> None:
    """A backward of an old graph past the module's own forward, on top of what is open."""
    net, _ = nets()
    scheduler = engine(net)
    assert scheduler.n_open == 0
    inner = net.stem(torch.ones(WIDTH)).sum()
    net(torch.ones(WIDTH)).sum().backward()
    inner.backward()


def test_a_backward_that_nobody_announced_on_top_of_open_gradients_is_an_error() -> None:
    for message in errors_of_ranks(2, unannounced):
        assert "parameter 'stem.weight' got a gradient while group 2 (stem.weight)" in message
        assert "Call scheduler.flush() or scheduler.prepare(loss) before it." in message


def compiled(rank: int, how: str) -> tuple[bool, list[int]]:
    """Compiled after two steps, with groups open, as a whole or in part."""
    results, n_open = [], []
    for is_ours in (True, False):
        torch._dynamo.reset()
        net, _ = nets()
        run: Any = net
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = adam(net)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(4):
            if step == 2 and how == "a block in place":
                net.middle.compile(backend="eager")
            elif step == 2:
                run = torch.compile(net, backend="eager")
            one_step(run, optimizer, rank, step)
            if is_ours:
                n_open.append(scheduler.n_open)
        scheduler.detach()
        results.append([p.detach().clone() for p in net.parameters()])
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True)), n_open


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a block in place", "the module"])
def test_where_torch_compiles_nothing_is_left_open(how: str) -> None:
    for alike, n_open in run_ranks(2, compiled, how, timeout_s=240.0):
        assert alike
        assert n_open == [2, 2, 0, 0]


def failing(rank: int) -> str:
    net, _ = nets()
    scheduler, optimizer = engine(net, stall_timeout_s=10.0), adam(net)
    scheduler.overlap(optimizer)
    one_step(net, optimizer, rank)
    scheduler.flush()
    if rank == 1:  # it never sends what comes last
        scheduler._launches._sequence = scheduler._launches._sequence[:1]
        one_step_without_waiting(net, scheduler)
        return "went away"
    one_step(net, optimizer, rank, 1)
    try:
        net(torch.ones(WIDTH))
    except ReductionError as error:
        tell("rank 0 has given up")
        scheduler.detach()
        assert not any(map(is_lazy, net.parameters()))
        return str(error)
    raise AssertionError("expected a ReductionError")


def one_step_without_waiting(net: nn.Module, scheduler: GradientScheduler) -> None:
    scheduler._launches._left_open = ()
    net(torch.ones(3, WIDTH)).square().mean().backward()
    until_told("rank 0 has given up")


@pytest.mark.slow
def test_a_stall_in_the_forward_names_group_parameters_and_ranks() -> None:
    message = run_ranks(2, failing)[0]
    assert "rank 0 waited" in message
    assert "for group 2 (stem.weight) and gives up" in message
    assert "Rank 1 " in message


def differing(rank: int) -> None:
    engine(nets()[0]) if rank == 0 else GradientScheduler(nets()[0])


def test_all_ranks_must_set_it_alike() -> None:
    for message in errors_of_ranks(2, differing):
        assert "overlap_forward is True on rank 0 and False on rank 1" in message
