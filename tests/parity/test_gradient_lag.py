"""``gradient_lag=1`` beside a slow, plain loop that keeps each step's mean for the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import NETS, WIDTH
from tests.parity.reference import average_gradients
from tests.parity.training import LARC, Weights, check_alike, make
from tests.ranks import run_ranks

N_STEPS = 5
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "LARC": LARC["LARC"],
}


class Recipe(NamedTuple):
    """How to train."""

    net: str = "residual"
    optimizer: str = "SGD"
    accumulate: int = 1
    syncs_each: bool = False  # every micro-batch is reduced, as without no_sync
    clip_norm: float | None = None
    autocast: bool = False
    zero_in_place: bool = False
    planner: str = "per_tensor"
    n_steps: int = N_STEPS


def batches(rank: int, recipe: Recipe) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(recipe.n_steps):
        yield [torch.randn(3, WIDTH, generator=generator) for _ in range(recipe.accumulate)]


def train(
    net: nn.Module, rank: int, recipe: Recipe, backward: Callable[[Tensor, bool], None]
) -> Weights:
    """``backward(loss, is_last)`` of each micro-batch."""
    optimizer = OPTIMIZERS[recipe.optimizer](net.parameters())
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)
    for batch in batches(rank, recipe):
        optimizer.zero_grad(set_to_none=not recipe.zero_in_place)
        for i, x in enumerate(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                loss = torch.cos(net(x)).mean()
            backward(loss, i == len(batch) - 1)
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm)
        optimizer.step()
        rates.step()
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def ours(rank: int, recipe: Recipe) -> Weights:
    net = make(recipe.net)
    scheduler = GradientScheduler(net, GradSchedConfig(planner=recipe.planner, gradient_lag=1))

    def backward(loss: Tensor, is_last: bool) -> None:
        if is_last or recipe.syncs_each:
            loss.backward()
        else:
            with scheduler.no_sync():
                loss.backward()

    weights = train(net, rank, recipe, backward)
    scheduler.detach()
    return weights


class Plain:
    """What the backward before has left is given out, and added to what ``.grad`` held."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.lagged = {param: torch.zeros_like(param) for param in net.parameters()}
        self.kept: dict[Tensor, Tensor] = {}

    def local(self, loss: Tensor) -> None:
        """Gradients that are not reduced add up."""
        loss.backward()

    def reduced(self, loss: Tensor) -> None:
        loss.backward()
        average_gradients(self.net)
        for param, mean in self.lagged.items():
            if param.grad is not None:
                self.lagged[param], param.grad = param.grad, mean


def reference(rank: int, recipe: Recipe) -> Weights:
    net = make(recipe.net)
    plain = Plain(net)
    given: dict[Tensor, Tensor] = {}

    def backward(loss: Tensor, is_last: bool) -> None:
        if not (is_last or recipe.syncs_each):
            plain.local(loss)
            return
        plain.reduced(loss)
        if recipe.syncs_each:
            for param in net.parameters():
                given[param] = given.get(param, 0) + param.grad
                param.grad = given[param] if is_last else None
            if is_last:
                given.clear()

    return train(net, rank, recipe, backward)


def both(rank: int, recipes: list[Recipe]) -> list[tuple[Weights, Weights]]:
    return [(ours(rank, recipe), reference(rank, recipe)) for recipe in recipes]


def check(*recipes: Recipe, n_ranks: int = 2) -> None:
    outcomes = run_ranks(n_ranks, both, list(recipes), timeout_s=120)
    for rank in outcomes:
        for recipe, (lagged, plain), (first, _) in zip(recipes, rank, outcomes[0], strict=True):
            check_alike(recipe, lagged, first, plain, n_ranks)


def test_optimizers() -> None:
    check(*(Recipe(optimizer=name) for name in OPTIMIZERS))


def test_nets() -> None:
    check(*(Recipe(net=net, optimizer="AdamW") for net in [*NETS, "shared_reentrant"]))


def test_recipes() -> None:
    check(
        Recipe(accumulate=3),
        Recipe(accumulate=3, syncs_each=True),
        Recipe(clip_norm=0.01),
        Recipe(autocast=True, optimizer="LARC"),
        Recipe(zero_in_place=True),
        Recipe(accumulate=2, zero_in_place=True, clip_norm=0.1, optimizer="AdamW"),
        Recipe(planner="ddp"),
        Recipe(planner="single", accumulate=2),
    )


def test_three_ranks() -> None:
    check(Recipe(), Recipe(accumulate=2, clip_norm=0.05, optimizer="LARC"), n_ranks=3)


@pytest.mark.slow
def test_a_trial_of_plans_loses_no_gradient() -> None:
    check(Recipe(planner="auto", n_steps=36, optimizer="AdamW"))
