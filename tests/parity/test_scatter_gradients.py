"""Weights after steps that look at all gradients, which travel in halves: DDP's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import NETS, WIDTH
from tests.parity.test_overlap_forward import LARC, OPTIMIZERS, check_alike, weights
from tests.ranks import run_ranks

N_STEPS = 6
Weights = dict[str, Tensor]
# GradScaler leaves the unscaling to its step.
FUSED = {"fused Adam": partial(torch.optim.Adam, lr=0.01, fused=True)}


class Recipe(NamedTuple):
    """How to train; ``planner`` is gradsched's. ``init_scale``: of a GradScaler, None for none."""

    net: str = "residual"
    optimizer: str = "SGD with momentum"
    accumulate: int = 1
    norm: float | None = 2.0
    value: float | None = None
    foreach: bool | None = None
    init_scale: float | None = None
    unscales: bool = True  # before the scaler's step, which does it otherwise
    inf_at: int | None = None  # the step at which rank 1 has an infinite gradient
    planner: str = "per_tensor"
    with_closure: bool = False
    scatters: bool | None = True


class Trained(NamedTuple):
    weights: Weights
    norms: list[float]
    scale: float | None
    n_open: int  # in the last step, after its optimizer's


def batches(rank: int, recipe: Recipe) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(100 + rank)
    for step in range(N_STEPS):
        batch = [torch.randn(3, WIDTH, generator=generator) for _ in range(recipe.accumulate)]
        if step == recipe.inf_at and rank == 1:
            batch[0][0, 0] = inf
        yield batch


def clip(net: nn.Module, recipe: Recipe) -> float:
    norm = 0.0
    if recipe.norm is not None:
        total = nn.utils.clip_grad_norm_(
            net.parameters(), 0.01, recipe.norm, foreach=recipe.foreach
        )
        norm = total.item()
    if recipe.value is not None:
        nn.utils.clip_grad_value_(net.parameters(), recipe.value, foreach=recipe.foreach)
    return norm


def train(
    net: nn.Module,
    rank: int,
    recipe: Recipe,
    *,
    forward: Callable[[Tensor], Tensor],
    no_sync: Callable[[], Any],
    overlap: Callable[[Optimizer], None] = lambda _: None,
    n_open: Callable[[], int] = lambda: 0,
) -> Trained:
    params = list(net.parameters())
    optimizer = {**OPTIMIZERS, **LARC, **FUSED}[recipe.optimizer](params)
    overlap(optimizer)
    scaler = torch.amp.GradScaler(
        "cpu",
        init_scale=recipe.init_scale or 1.0,
        growth_interval=2,
        enabled=bool(recipe.init_scale),
    )
    norms = []
    for batch in batches(rank, recipe):

        def closure(batch: list[Tensor] = batch) -> None:
            optimizer.zero_grad()
            for i, x in enumerate(batch):
                with nullcontext() if i == len(batch) - 1 else no_sync():
                    scaler.scale(torch.cos(forward(x)).mean()).backward()
            if recipe.unscales:
                scaler.unscale_(optimizer)
            norms.append(clip(net, recipe))

        if recipe.with_closure:
            optimizer.step(closure)
        else:
            closure()
            scaler.step(optimizer)
            scaler.update()
    scale = scaler.get_scale() if recipe.init_scale else None
    return Trained({}, norms, scale, n_open())


def both(rank: int, recipe: Recipe) -> tuple[Trained, Trained]:
    """gradsched's and DDP's."""
    torch.manual_seed(0)
    ours = NETS[recipe.net]()
    torch.manual_seed(0)
    theirs = NETS[recipe.net]()
    sizes = {"planner": "fixed_size", "group_nbytes": 600}
    config = GradSchedConfig(
        overlap_forward=True,
        scatter_gradients=recipe.scatters,
        **(sizes if recipe.planner == "fixed of 600" else {"planner": recipe.planner}),
    )
    scheduler = GradientScheduler(ours, config)
    mine = train(
        ours,
        rank,
        recipe,
        forward=ours,
        no_sync=scheduler.no_sync,
        overlap=scheduler.overlap,
        n_open=lambda: scheduler.n_open,
    )
    scheduler.flush()
    mine = mine._replace(weights=weights(ours))
    scheduler.detach()
    ddp = DistributedDataParallel(theirs)
    reference = train(theirs, rank, recipe, forward=ddp, no_sync=ddp.no_sync)
    return mine, reference._replace(weights=weights(theirs))


def all_of(rank: int, recipes: list[Recipe]) -> list[tuple[Trained, Trained]]:
    return [both(rank, recipe) for recipe in recipes]


def check(*recipes: Recipe, leaves_open: bool = True, n_ranks: int = 2) -> None:
    ranks = run_ranks(n_ranks, all_of, list(recipes), timeout_s=120)
    for rank in ranks:
        for recipe, (ours, ddp), (first, _) in zip(recipes, rank, ranks[0], strict=True):
            assert (ours.n_open > 0) is leaves_open, recipe
            assert ours.norms == first.norms, recipe
            assert ours.scale == ddp.scale, recipe
            if n_ranks == 2:
                assert repr(ours.norms) == repr(ddp.norms), recipe
            check_alike(recipe, ours.weights, first.weights, ddp.weights, n_ranks)


def test_clipping_by_norm() -> None:
    check(
        Recipe(optimizer="SGD"),
        Recipe(norm=inf),
        Recipe(norm=1.0, foreach=False),
        Recipe(foreach=True),
        Recipe(accumulate=3),
        Recipe(with_closure=True, optimizer="Adam"),
    )


def test_optimizers() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in OPTIMIZERS))


def test_nets() -> None:
    check(*(Recipe(net=net, optimizer="AdamW") for net in NETS))


def test_groups_of_several_parameters() -> None:
    check(Recipe(planner="fixed of 600"), Recipe(planner="fixed of 600", init_scale=4.0))


def test_clipping_by_value() -> None:
    check(
        Recipe(norm=None, value=1e-4),
        Recipe(norm=None, value=1e-4, foreach=True, optimizer="Adam"),
        Recipe(value=1e-4),
    )


def test_loss_scaling() -> None:
    check(
        Recipe(init_scale=65536.0),
        Recipe(init_scale=3.0, optimizer="AdamW", foreach=True),
        Recipe(init_scale=65536.0, norm=None, accumulate=2),
        Recipe(init_scale=65536.0, norm=None, unscales=False),
    )


def test_a_step_with_an_infinite_gradient_is_skipped_on_all_ranks() -> None:
    base = Recipe(init_scale=1024.0, inf_at=4)
    recipes = [
        base,
        base._replace(norm=None),
        base._replace(norm=None, unscales=False),
        base._replace(optimizer="fused Adam"),
        base._replace(norm=None, optimizer="fused Adam"),
        base._replace(norm=None, unscales=False, optimizer="fused Adam"),
    ]
    for rank in run_ranks(2, all_of, recipes, timeout_s=120):
        for ours, ddp in rank:
            assert ours.scale == ddp.scale == 2048.0
            assert repr(ours.norms) == repr(ddp.norms)
            assert all(torch.equal(weight, ddp.weights[n]) for n, weight in ours.weights.items())
            assert all(bool(weight.isfinite().all()) for weight in ours.weights.values())


def test_larc_on_the_update_looks_at_weights_and_so_ends_the_wait() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in LARC), leaves_open=False)


def test_three_ranks() -> None:
    check(Recipe(), Recipe(optimizer="AdamW", accumulate=2, init_scale=16.0), n_ranks=3)


def test_steps_that_are_found_out_to_clip_or_scale() -> None:
    base = Recipe(scatters=None)
    recipes = [
        base,
        base._replace(norm=1.0, foreach=False, accumulate=3),
        base._replace(norm=None, value=1e-4, optimizer="Adam"),
        base._replace(with_closure=True, optimizer="Adam"),
        base._replace(init_scale=65536.0, norm=None, unscales=False),
        base._replace(init_scale=65536.0, accumulate=2),
        base._replace(net="tied", optimizer="AdamW"),
    ]
    check(*recipes)
    check(base, n_ranks=3)


def test_steps_that_neither_clip_nor_scale_and_those_that_nothing_can_be_done_about() -> None:
    check(Recipe(scatters=None, norm=None))
    check(Recipe(scatters=None, optimizer="fused Adam", init_scale=4.0), leaves_open=False)


def test_who_does_not_ask_waits_for_nothing() -> None:
    check(Recipe(norm=None), Recipe(norm=None, optimizer="AdamW", accumulate=2))
