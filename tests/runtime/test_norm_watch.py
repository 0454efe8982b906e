"""Whether the first steps clip or scale: what counts as that, and what the ranks do about it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.runtime import norm_watch
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.lazy import is_lazy
from lightning_gradsched.runtime.norm_watch import WATCHED_STEPS, NormWatch
from tests.ranks import run_ranks
from tests.runtime.overlapping import WIDTH, Chain, adam, engine, nets, one_step
from tests.runtime.test_reduction import on_nodes
from tests.runtime.test_scatter_gradients import backward, clip, clipped_step

Asks = Callable[[nn.Module, torch.optim.Optimizer], None]


@pytest.fixture(autouse=True)
def _nothing_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a test before may have, and then nothing is found."""
    monkeypatch.setattr(norm_watch, "has_compiled", lambda: False)


def watched(asks: Asks, *, is_of_use: bool = True) -> tuple[NormWatch, list[Tensor]]:
    """The watch of one step of a small net in which ``asks`` runs, and the gradients after it."""
    torch.manual_seed(0)
    net, watch = Chain(), NormWatch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(3, WIDTH)).square().mean().backward()
    watch.is_of_use = is_of_use
    watch.start()
    assert not watch.step_ended(net.parameters())
    asks(net, optimizer)
    watch.settle()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert not any(map(is_lazy, grads))
    return watch, grads


def scaled(net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # which makes its state
    scaler.unscale_(optimizer)
    return scaler


def one_of_three(net: nn.Module, _optimizer: Any) -> None:
    nn.utils.clip_grad_norm_(list(net.parameters())[:1], 0.01)


def each_before(net: nn.Module, _optimizer: Any) -> None:
    """As a logger of norms would."""
    assert all(p.grad is not None and p.grad.norm() > 0 for p in net.parameters())
    clip(net)


ASKS_OF_ALL: dict[str, Asks] = {
    "norm": lambda net, _: nn.utils.clip_grad_norm_(net.parameters(), 0.01),
    "norm, one by one": lambda net, _: nn.utils.clip_grad_norm_(
        net.parameters(), 0.01, 1.0, foreach=False
    ),
    "norm without a clip": lambda net, _: nn.utils.get_total_norm(
        [p.grad for p in net.parameters()]
    ),
    "value": lambda net, _: nn.utils.clip_grad_value_(net.parameters(), 1e-3),
    "scaler": lambda net, optimizer: scaled(net, optimizer),
    "two of three": lambda net, _: nn.utils.clip_grad_norm_(list(net.parameters())[:2], 0.01),
}
ASKS_LITTLE: dict[str, Asks] = {
    "nothing": lambda net, _: None,
    "one of three": one_of_three,
    "all, looked at before": each_before,
    "sizes": lambda net, _: [p.grad.shape for p in net.parameters()],
    "the step": lambda net, optimizer: optimizer.step(),
    "none is left": lambda net, optimizer: optimizer.zero_grad(),
}


@pytest.mark.parametrize("name", ASKS_OF_ALL)
def test_it_finds_questions_that_are_asked_of_most_gradients(name: str) -> None:
    watch, grads = watched(ASKS_OF_ALL[name])
    assert watch.found
    _, unwatched = watched(ASKS_OF_ALL[name], is_of_use=False)
    assert all(torch.equal(p, q) for p, q in zip(grads, unwatched, strict=True))


@pytest.mark.parametrize("name", ASKS_LITTLE)
def test_it_finds_nothing_in_other_steps(name: str) -> None:
    watch, grads = watched(ASKS_LITTLE[name])
    assert not watch.found
    _, unwatched = watched(ASKS_LITTLE[name], is_of_use=False)
    assert all(torch.equal(p, q) for p, q in zip(grads, unwatched, strict=True))


def stepping(
    before: Callable[[nn.Module], Any] = lambda _: None,
    after: Callable[[nn.Module], Any] = lambda _: None,
    found_inf: Tensor | None = None,
) -> bool:
    """What is found of a step in whose course the watch is told that the optimizer's begins."""
    net, watch = Chain(), NormWatch()
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(WIDTH)).square().mean().backward()
    watch.is_of_use = True
    watch.start()
    watch.step_ended(net.parameters())
    before(net)
    if found_inf is not None:
        optimizer.found_inf = found_inf
    watch.step_begins(optimizer)
    after(net)
    watch.settle()
    return watch.found


def test_what_the_optimizer_asks_or_who_comes_after_it_does_not_count() -> None:
    assert stepping(before=clip)
    assert not stepping(after=clip)


def test_a_fused_optimizer_under_a_scaler_waits_for_all_anyway() -> None:
    assert not stepping(before=clip, found_inf=torch.zeros(()))


def test_of_two_optimizers_it_is_enough_that_one_clips_its_own() -> None:
    watch, net = NormWatch(), Chain()
    watch.is_of_use = True
    small = torch.optim.SGD([net.stem.weight], lr=0.1)
    large = torch.optim.SGD([net.middle.weight, net.head.weight], lr=0.1)
    net(torch.ones(WIDTH)).square().mean().backward()
    watch.start()
    watch.step_ended(net.parameters())
    watch.step_begins(large)
    assert not watch.found
    nn.utils.clip_grad_norm_([net.stem.weight], 0.1)
    watch.step_begins(small)
    assert watch.found


def test_it_ends_after_a_few_steps_and_where_torch_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, net = NormWatch(), Chain()
    watch.is_of_use = True
    net(torch.ones(WIDTH)).square().mean().backward()
    grads = [p.grad for p in net.parameters()]
    watch.start()
    for _ in range(WATCHED_STEPS):
        assert not watch.step_ended(net.parameters())
        assert all(map(is_lazy, grads))
        watch.settle()
    assert watch.is_over_next
    assert watch.step_ended(net.parameters())
    assert not watch.step_ended(net.parameters())
    assert not any(map(is_lazy, grads))
    monkeypatch.setattr(norm_watch, "has_compiled", lambda: True)
    watch.start()
    watch.step_ended(net.parameters())
    assert not any(map(is_lazy, grads))


def is_watched(
    backend: str = "gloo",
    n_ranks: int = 2,
    device: str = "cpu",
    others: str = "cpu",
    *,
    is_flat: bool = True,
    **config: Any,
) -> bool:
    """Whether a job would be; ``others``: the device of the other ranks' parameters."""

    def greatest(values: list[int]) -> list[int]:
        return [max(value, int(others != "cpu")) for value in values]

    ranks = SimpleNamespace(backend=backend, world_size=n_ranks, max=greatest)
    settings = GradSchedConfig(**{"overlap_forward": True, **config})
    net = nn.Linear(1, 1, device=device)
    watch = norm_watch.norm_watch(settings, net, cast(Collectives, ranks), is_flat=is_flat)
    return watch is not None


def test_only_jobs_are_watched_that_could_go_in_halves_and_have_not_decided() -> None:
    assert is_watched()
    assert not is_watched(overlap_forward=False)
    assert not is_watched(scatter_gradients=True)
    assert not is_watched(scatter_gradients=False)
    assert not is_watched(reduce_dtype="bf16")
    assert not is_watched(is_flat=False)
    assert not is_watched(n_ranks=1)
    assert not is_watched("nccl")
    assert not is_watched(device="meta")
    assert not is_watched(others="meta")


def trained(
    rank: int, step_of: Any, config: dict[str, Any], names_it: bool = True, n_steps: int = 6
) -> tuple[GradientScheduler, list[Tensor]]:
    net, _ = nets()
    settings = {"planner": "per_tensor", "overlap_forward": True, **config}
    scheduler, optimizer = GradientScheduler(net, GradSchedConfig(**settings)), adam(net)
    if names_it and settings["overlap_forward"]:
        scheduler.overlap(optimizer)
    for step in range(n_steps):
        step_of(net, optimizer, rank, step)
    scheduler.flush()
    return scheduler, [p.detach().clone() for p in net.parameters()]


def plain_step(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    one_step(net, optimizer, rank, step)


def asks_on_rank_1(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    backward(net, optimizer, rank, step)
    if rank == 1:
        nn.utils.get_total_norm([p.grad for p in net.parameters()])
    optimizer.step()


def clips_later(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    (clipped_step if step > WATCHED_STEPS else plain_step)(net, optimizer, rank, step)


def clips_in_turns(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """Of gradients that are reduced each time: the second step clips the sum of two."""
    if step % 2 == 0:
        optimizer.zero_grad()
    net(torch.full((3, WIDTH), 1.0 + rank + step)).square().mean().backward()
    if step % 2 == 1:
        clip(net)
        optimizer.step()


def decided(rank: int, step_of: Any, config: dict[str, Any], names_it: bool) -> tuple[Any, bool]:
    """The plan that None comes to, and whether the weights are the plain engine's."""
    scheduler, weights = trained(rank, step_of, config, names_it)
    plain, expected = trained(rank, step_of, {**config, "overlap_forward": False})
    plan = scheduler.plan
    scheduler.detach()
    plain.detach()
    return plan, all(torch.equal(p, q) for p, q in zip(weights, expected, strict=True))


@pytest.mark.parametrize(
    ("step_of", "config", "names_it", "halves"),
    [
        (clipped_step, {}, True, True),
        (clips_in_turns, {}, True, True),
        (asks_on_rank_1, {}, True, True),
        (plain_step, {}, True, False),
        (clips_later, {}, True, False),
        (clipped_step, {}, False, False),
        (clipped_step, {"scatter_gradients": False}, True, False),
        (clipped_step, {"reduce_dtype": "bfloat16"}, True, False),
    ],
)
def test_what_none_comes_to(
    step_of: Any, config: dict[str, Any], names_it: bool, halves: bool
) -> None:
    for plan, is_alike in run_ranks(2, decided, step_of, config, names_it):
        assert is_alike
        assert plan.planner == ("per_tensor in halves" if halves else "per_tensor")
        assert any(plan.owners) is halves


def through_the_nodes(rank: int) -> tuple[str, Any]:
    on_nodes(rank, [2, 2])
    scheduler, _ = trained(rank, clipped_step, {"reduction": "hierarchical"})
    found = scheduler.reduction, scheduler.plan
    scheduler.detach()
    return found


def test_nothing_is_halved_that_goes_through_the_nodes() -> None:
    for reduction, plan in run_ranks(4, through_the_nodes):
        assert reduction == "hierarchical"
        assert plan.planner == "per_tensor"
        assert not any(plan.owners)


def schedules(rank: int, scatters: bool | None) -> list[tuple[Any, Any, int]]:
    net, _ = nets()
    scheduler, optimizer = engine(net, scatter_gradients=scatters), adam(net)
    scheduler.overlap(optimizer)
    seen = []
    for step in range(6):
        one_step(net, optimizer, rank, step)
        seen.append((scheduler.plan, str(scheduler.schedule), scheduler.n_open))
    scheduler.detach()
    return seen


def test_steps_that_do_not_clip_are_as_with_false() -> None:
    assert run_ranks(2, schedules, None) == run_ranks(2, schedules, False)


def measured(rank: int, clips: bool) -> tuple[list[str], bool]:
    step_of = clipped_step if clips else plain_step
    scheduler, weights = trained(rank, step_of, {"planner": "auto"}, n_steps=36)
    plain, expected = trained(rank, step_of, {"overlap_forward": False}, n_steps=36)
    names = [tried.planner for tried in scheduler.tried]
    scheduler.detach()
    plain.detach()
    return names, all(torch.equal(p, q) for p, q in zip(weights, expected, strict=True))


def test_the_planner_tries_halves_where_steps_clip() -> None:
    for clips in (True, False):
        for names, is_alike in run_ranks(2, measured, clips):
            assert is_alike
            assert any(name.endswith("in halves") for name in names) is clips
            assert not all(name.endswith("in halves") for name in names)


def restored(rank: int) -> list[bool]:
    """A plan in halves that was found out, kept for a later run; none before that."""
    early, _ = trained(rank, clipped_step, {}, n_steps=WATCHED_STEPS)
    assert early.plan_state() is None
    early.detach()
    scheduler, _ = trained(rank, clipped_step, {})
    state, plan = copy.deepcopy(scheduler.plan_state()), scheduler.plan
    scheduler.detach()
    assert state is not None
    assert any(plan.owners)
    results = []
    for config in ({}, {"scatter_gradients": False}, {"scatter_gradients": True}):
        net, _ = nets()
        later = engine(net, **config)
        results.append(later.restore_plan(state))
        for step in range(WATCHED_STEPS + 2):  # and it stays
            clipped_step(net, adam(net), rank, step)
        assert not results[-1] or later.plan == plan
        later.detach()
    return results


def test_a_plan_that_was_found_out_is_restored_where_it_may_be() -> None:
    assert run_ranks(2, restored) == [[True, False, False]] * 2
