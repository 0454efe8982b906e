"""What groups in halves can answer before they have come, who still waits, and what breaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.lazy import is_lazy
from lightning_gradsched.runtime.scatter import ScatterTransport
from tests.ranks import errors_of_ranks, outcomes_of_ranks, run_ranks, tell, until_told
from tests.runtime.overlapping import WIDTH, Chain, adam, engine, nets


def backward(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(10 * step + rank)
    optimizer.zero_grad()
    net(torch.randn(3, WIDTH, generator=generator)).square().mean().backward()


def clip(net: nn.Module, order: float = 2.0) -> float:
    return float(nn.utils.clip_grad_norm_(net.parameters(), 1e-3, order))


def beside(
    rank: int,
    step_of: Callable[[Any, torch.optim.Optimizer, int, int], None],
    n_steps: int = 5,
    make: Callable[[], nn.Module] = Chain,
) -> tuple[list[int], bool]:
    """How many groups each step has left open, and whether the weights are the plain engine's."""
    ours, plain = nets(make)
    results, n_open = [], []
    for net in (ours, plain):
        is_ours = net is ours
        scheduler = engine(net, scatter_gradients=True) if is_ours else GradientScheduler(net)
        optimizer = adam(net)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(n_steps):
            step_of(net, optimizer, rank, step)
            if is_ours:
                n_open.append(scheduler.n_open)
        scheduler.detach()
        results.append([p.detach().clone() for p in net.parameters()])
    return n_open, all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def clipped_step(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    backward(net, optimizer, rank, step)
    clip(net)
    optimizer.step()


def test_the_first_clip_waits_for_all_and_the_next_ones_for_nothing() -> None:
    assert run_ranks(2, beside, clipped_step) == [([0, 2, 2, 2, 2], True)] * 2


def step_of_another_order(
    net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int
) -> None:
    backward(net, optimizer, rank, step)
    clip(net, 2.0 if step < 3 else 1.0)
    optimizer.step()


def test_a_norm_that_was_not_foreseen_is_waited_for() -> None:
    assert run_ranks(2, beside, step_of_another_order) == [([0, 2, 2, 0, 2], True)] * 2


def step_with_unlike_questions(
    net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int
) -> None:
    """Rank 1 looks at another norm before it clips; rank 0 alone reads a gradient."""
    backward(net, optimizer, rank, step)
    if rank == 0 and step == 1:
        assert float(net.stem.weight.grad.abs().sum()) > 0
    if rank == 1 and step == 2:
        clip(net, 2.0)
        nn.utils.get_total_norm([p.grad for p in net.parameters()], 1.0)
    else:
        clip(net)
    optimizer.step()


def test_ranks_need_not_ask_alike() -> None:
    for n_open, is_alike in run_ranks(2, beside, step_with_unlike_questions):
        assert is_alike
        assert n_open[-1] == 2


def step_that_multiplies(
    net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int
) -> None:
    """Between a clip and the step, and after the step, where it shall change nothing any more."""
    backward(net, optimizer, rank, step)
    clip(net)
    for param in net.parameters():
        param.grad.mul_(3.0)
        param.grad.clamp_(min=-1e-3, max=1e-3)
    optimizer.step()
    net.stem.weight.grad.mul_(100.0)


def test_what_is_put_off_is_done_in_order_and_nothing_after_the_step() -> None:
    for n_open, is_alike in run_ranks(2, beside, step_that_multiplies):
        assert is_alike
        assert n_open == [0, 1, 1, 1, 1]  # the last product looks at one


def looks(rank: int) -> list[bool]:
    """Gradients read after a clip that waited for nothing, by many ways."""
    alike = []
    for look in (
        lambda grads: grads[0].clone(),
        lambda grads: grads[0].norm(),
        lambda grads: torch.stack(torch._foreach_norm(grads, 2.0)),
        lambda grads: torch.linalg.vector_norm(grads[0], 2.0, dtype=torch.float64),
        lambda grads: torch._foreach_mul(grads, 2.0)[0],
        lambda grads: torch.tensor(grads[0].tolist()),
    ):
        found: list[Tensor] = []
        ours, plain = nets()
        for net in (ours, plain):
            is_ours = net is ours
            scheduler = engine(net, scatter_gradients=True) if is_ours else GradientScheduler(net)
            optimizer = adam(net)
            for step in range(2):
                backward(net, optimizer, rank, step)
                clip(net)
            assert not is_ours or all(is_lazy(p.grad) for p in list(net.parameters())[:2])
            found.append(look([p.grad for p in net.parameters()]))
            scheduler.detach()
        alike.append(torch.equal(*found))
    return alike


def test_who_reads_a_gradient_finds_it_clipped() -> None:
    assert run_ranks(2, looks) == [[True] * 6] * 2


class Branching(Chain):
    """Skips its middle layer where its input begins with a positive number."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(x if x[0, 0] > 0 else torch.tanh(self.middle(x)))


def branching() -> nn.Module:
    return Branching()


def test_parameters_unused_on_some_ranks() -> None:
    for _, is_alike in run_ranks(2, beside, clipped_step, 8, branching):
        assert is_alike


def test_three_ranks_of_which_one_owns_nothing() -> None:
    first, *others = run_ranks(3, weights_of, 4)
    assert all(weights == first for weights in others)


def weights_of(rank: int, n_steps: int) -> list[list[float]]:
    net, _ = nets()
    scheduler, optimizer = engine(net, scatter_gradients=True), adam(net)
    scheduler.overlap(optimizer)
    for step in range(n_steps):
        clipped_step(net, optimizer, rank, step)
    assert scheduler.n_open == 2
    scheduler.flush()
    values = [p.detach().flatten().tolist() for p in net.parameters()]
    scheduler.detach()
    return values


def restored(rank: int) -> bool:
    """A plan in halves, kept for a later run."""
    net, _ = nets()
    scheduler, optimizer = engine(net, scatter_gradients=True), adam(net)
    clipped_step(net, optimizer, rank, 0)
    state, plan = scheduler.plan_state(), scheduler.plan
    scheduler.detach()
    assert state is not None
    later = engine(net, scatter_gradients=True)
    assert later.restore_plan(state)
    clipped_step(net, optimizer, rank, 1)
    is_same = later.plan == plan
    later.detach()
    other = engine(net)
    assert not other.restore_plan(state)
    other.detach()
    return is_same


def test_a_plan_in_halves_is_restored_where_gradients_are_scattered() -> None:
    assert run_ranks(2, restored) == [True, True]


def automatic(rank: int) -> tuple[list[str], bool]:
    net, _ = nets()
    config = GradSchedConfig(overlap_forward=True, scatter_gradients=True, record_every_n_steps=1)
    scheduler, optimizer = GradientScheduler(net, config), adam(net)
    scheduler.overlap(optimizer)
    for step in range(40):
        clipped_step(net, optimizer, rank, step)
    scheduler.flush()
    names = [tried.planner for tried in scheduler.tried]
    report = str(scheduler.report())
    scheduler.detach()
    return names, "exposed" in report


def test_the_planner_tries_halves_beside_what_waits_for_all() -> None:
    for names, has_report in run_ranks(2, automatic):
        assert any(name.endswith("in halves") for name in names)
        assert not all(name.endswith("in halves") for name in names)
        assert has_report


def recorded(rank: int) -> list[str]:
    net, _ = nets()
    scheduler = engine(net, scatter_gradients=True, record_every_n_steps=1)
    optimizer = adam(net)
    scheduler.overlap(optimizer)
    for step in range(9):
        clipped_step(net, optimizer, rank, step)
    scheduler.flush()
    labels = {s.label for s in scheduler.timelines()[-1].spans if s.track == "communication"}
    scheduler.detach()
    return sorted(labels)


def test_both_halves_are_recorded() -> None:
    assert run_ranks(2, recorded) == [["0", "1", "1 sums", "2", "2 sums"]] * 2


def cut_off(rank: int, where: str) -> bool:
    """All ranks catch an exception in the midst of a backward or between the halves, and go on."""
    net, _ = nets()
    scheduler, optimizer = engine(net, scatter_gradients=True), adam(net)
    scheduler.overlap(optimizer)
    clipped_step(net, optimizer, rank, 0)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    send_means = ScatterTransport.send_means
    handle = net.middle.weight.register_hook(fail) if where == "backward" else None
    if handle is None:
        ScatterTransport.send_means = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        clipped_step(net, optimizer, rank, 1)
    ScatterTransport.send_means = send_means  # type: ignore[method-assign]
    if handle is not None:
        handle.remove()
    for step in range(2, 4):
        clipped_step(net, optimizer, rank, step)
    assert scheduler.n_open == 2
    scheduler.flush()
    is_finite = all(bool(p.isfinite().all()) for p in net.parameters())
    scheduler.detach()
    return is_finite


@pytest.mark.parametrize("where", ["backward", "between the halves"])
def test_a_backward_that_was_cut_off_leaves_nothing_open(where: str) -> None:
    assert run_ranks(2, cut_off, where) == [True, True]


def stalling(rank: int, half: str) -> None:
    """Rank 1 goes away before or after its first halves, in the third step."""
    net, _ = nets()
    scheduler, optimizer = engine(net, scatter_gradients=True, stall_timeout_s=15.0), adam(net)
    scheduler.overlap(optimizer)
    for step in range(3):
        if step == 2:
            scheduler.flush()
            tell(f"rank {rank} has the second step's")
        if rank == 1 and step == 2:
            if half == "sums":
                until_told("rank 0 has the second step's")
                os._exit(7)

            def never(self: ScatterTransport, buckets: Any) -> Any:
                self._before_means(buckets)  # the norms, and no more
                until_told("rank 0 has the third step's norms")
                os._exit(7)

            ScatterTransport.send_means = never  # type: ignore[method-assign, assignment]
        clipped_step(net, optimizer, rank, step)
    tell(f"rank {rank} has the third step's norms")
    net(torch.ones(WIDTH))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half", "named"),
    [
        ("sums", "group 0 (head.weight)"),
        ("means", "the means of group 2 (stem.weight) from rank 1"),
    ],
)
def test_a_rank_that_dies_is_named_with_the_half_that_it_owes(half: str, named: str) -> None:
    (how, error), (died, _) = outcomes_of_ranks(2, stalling, half)
    assert (how, died) == ("raised", "died")
    assert ReductionError.__name__ in error
    assert named in error
    assert "rank 1" in error.lower()


def settings(rank: int) -> None:
    engine(nets()[0], scatter_gradients=rank == 0)


def test_all_ranks_must_set_it_alike() -> None:
    for message in errors_of_ranks(2, settings):
        assert "scatter_gradients is True on rank 0 and False on rank 1" in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "expected overlap_forward=True"),
        ({"overlap_forward": True, "reduce_dtype": "bf16"}, "expected reduce_dtype=None"),
        ({"overlap_forward": True, "reduction": "hierarchical"}, "expected reduction='flat'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        GradSchedConfig(scatter_gradients=True, **config)
