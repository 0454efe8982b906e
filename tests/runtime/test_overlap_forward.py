"""What others see while groups are left to the next forward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler
from lightning_gradsched.runtime.lazy import is_lazy
from tests.ranks import run_ranks
from tests.runtime.overlapping import LOOKS, WIDTH, Chain, adam, engine, nets, one_step, overlapped


def looks(rank: int) -> list[str]:
    wrong = []
    for name, look in LOOKS.items():
        net, _, scheduler, plain = overlapped(rank)
        assert is_lazy(net.stem.weight)
        if not torch.equal(look(net), look(plain)):
            wrong.append(name)
        assert not is_lazy(net.stem.weight), name
        scheduler.detach()
    return wrong


def test_whoever_looks_finds_what_there_would_be_without() -> None:
    assert run_ranks(2, looks) == [[], []]


def metadata_and_zeroing(rank: int) -> None:
    net, optimizer, scheduler, plain = overlapped(rank)
    weight = net.stem.weight
    assert (weight.shape, weight.numel(), weight.dtype) == ((WIDTH, WIDTH), 36, torch.float32)
    optimizer.zero_grad()
    net.requires_grad_(False).requires_grad_(True)
    assert len(list(net.parameters())) == 3
    assert is_lazy(weight)
    assert scheduler.n_open == 2
    # Each module waits for its own.
    net.stem(torch.ones(WIDTH))
    assert scheduler.n_open == 1
    assert weight.grad is None
    assert torch.equal(weight, plain.stem.weight)
    assert is_lazy(net.middle.weight)
    scheduler.flush()
    assert scheduler.n_open == 0
    assert torch.equal(net.middle.weight, plain.middle.weight)


def test_zeroing_and_questions_of_form_end_no_wait() -> None:
    run_ranks(2, metadata_and_zeroing)


def evaluation_first(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first to use the weights is an evaluation in inference mode, in another dtype."""
    net, plain = nets()
    scheduler, optimizer = engine(net), adam(net)
    reference, plain_optimizer = GradientScheduler(plain), adam(plain)
    scheduler.overlap(optimizer)
    for step in range(3):
        one_step(net, optimizer, rank, step)
        one_step(plain, plain_optimizer, rank, step)
        for model in (net, plain):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                model(torch.ones(WIDTH))
    reference.detach()
    scheduler.detach()
    return net.state_dict(), plain.state_dict()


def test_an_evaluation_that_comes_first_changes_nothing() -> None:
    for ours, theirs in run_ranks(2, evaluation_first):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def optimizer_state(rank: int) -> None:
    net, optimizer, scheduler, plain = overlapped(rank)
    state = optimizer.state_dict()["state"]
    assert len(state) == 3
    assert scheduler.n_open == 0
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


def test_the_optimizers_state_is_complete() -> None:
    run_ranks(2, optimizer_state)


def hooks_on_a_step(rank: int) -> None:
    net, _ = nets()
    scheduler, optimizer = engine(net), adam(net)
    seen: list[tuple[int, int]] = []

    def hook(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        seen.append((len(optimizer.param_groups[0]["params"]), scheduler.n_open))

    optimizer.register_step_pre_hook(hook)
    optimizer.register_step_post_hook(hook)
    scheduler.overlap(optimizer)
    for step in range(2):
        one_step(net, optimizer, rank, step)
    scheduler.flush()
    # Once before and once after each step, with all parameters in their group, open or not.
    assert seen == [(3, 2)] * 4


def test_hooks_on_a_step_run_once_a_step_and_see_all_parameters() -> None:
    run_ranks(2, hooks_on_a_step)


def unknown_optimizer(rank: int) -> tuple[int, bool]:
    """Of an optimizer that the engine was not told of, a step waits for all."""
    net, plain = nets()
    scheduler, reference = engine(net), GradientScheduler(plain)
    for step in range(2):
        one_step(net, adam_of(net), rank, step)
        one_step(plain, adam_of(plain), rank, step)
    alike = all(
        torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True)
    )
    reference.detach()
    return scheduler.n_open, alike


def adam_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def test_a_step_of_an_optimizer_that_was_not_given_waits() -> None:
    assert run_ranks(2, unknown_optimizer) == [(0, True)] * 2


class Odd(Chain):
    """Uses weights past their modules, by native code, twice, or on one rank only."""

    def __init__(self, kind: str, rank: int) -> None:
        super().__init__()
        self.kind, self.rank = kind, rank

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "past its module":
            x = F.linear(x, self.middle.weight)
        elif self.kind == "twice":
            x = self.stem(self.middle(x))
        elif self.kind == "on one rank" and self.rank == 1:
            return self.head(self.stem(x))
        return super().forward(x)


def odd_nets(rank: int) -> list[str]:
    wrong = []
    for kind in ("past its module", "twice", "on one rank", "as it comes"):
        net, plain = nets(lambda kind=kind: Odd(kind, rank))
        scheduler, reference = engine(net), GradientScheduler(plain)
        optimizer, plain_optimizer = adam(net), adam(plain)
        scheduler.overlap(optimizer)
        for step in range(4):
            one_step(net, optimizer, rank, step)
            one_step(plain, plain_optimizer, rank, step)
        pairs = zip(net.parameters(), plain.parameters(), strict=True)
        if not all(torch.equal(p, q) for p, q in pairs):
            wrong.append(kind)
        scheduler.detach()
        reference.detach()
    return wrong


def test_weights_that_are_used_in_odd_ways_are_up_to_date() -> None:
    assert run_ranks(2, odd_nets) == [[], []]


def kept_gradients(rank: int) -> bool:
    """Gradients pile up on those of the step before; one graph is gone through twice."""
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        if is_ours:
            scheduler.overlap(optimizer)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(3):
            loss = net(torch.randn(3, WIDTH, generator=generator)).square().mean()
            loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_gradients_that_are_kept_and_graphs_that_are_reused() -> None:
    # The second backward changes no weight that the graph has saved: none is due before the step.
    assert run_ranks(2, kept_gradients) == [True, True]


def scaled(rank: int) -> bool:
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer, scaler = adam(net), torch.amp.GradScaler("cpu", init_scale=1024.0)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.full((3, WIDTH), torch.inf if step == 2 and rank == 1 else 1.0 + rank)
            scaler.scale(net(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_loss_scaling_looks_at_all_gradients_and_skips_on_all_ranks() -> None:
    assert run_ranks(2, scaled) == [True, True]
