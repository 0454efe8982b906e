"""Weights after whole steps, each rank updating its part of them: beside DDP, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import NETS
from tests.parity.test_overlap_forward import (
    LARC,
    OPTIMIZERS,
    Recipe,
    Weights,
    check_alike,
    make,
    train,
    weights,
)
from tests.ranks import run_ranks


def state_nbytes(optimizer: Optimizer) -> int:
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )


def both(rank: int, recipe: Recipe) -> tuple[Weights, Weights, int, int]:
    """gradsched's, DDP's, and the bytes of this rank's optimizer state in each."""
    made: list[Optimizer] = []
    ours, theirs = make(recipe.net), make(recipe.net)
    scheduler = GradientScheduler(
        ours, GradSchedConfig(planner=recipe.planner, shard_optimizer=True)
    )

    def shard(optimizer: Optimizer) -> None:
        scheduler.shard(optimizer)
        made.append(optimizer)

    train(ours, rank, recipe, forward=ours, no_sync=scheduler.no_sync, overlap=shard)
    assert scheduler.n_open > 0
    result = weights(ours)
    assert scheduler.n_open == 0
    scheduler.detach()
    step: Any = made.append
    ddp = DistributedDataParallel(theirs)
    train(theirs, rank, recipe, forward=ddp, no_sync=ddp.no_sync, overlap=step)
    return result, weights(theirs), state_nbytes(made[0]), state_nbytes(made[1])


def all_of(rank: int, recipes: list[Recipe]) -> list[tuple[Weights, Weights, int, int]]:
    return [both(rank, recipe) for recipe in recipes]


def check(*recipes: Recipe, n_ranks: int = 2) -> None:
    ranks = run_ranks(n_ranks, all_of, list(recipes), timeout_s=120)
    for i, recipe in enumerate(recipes):
        nbytes, whole_nbytes = [rank[i][2] for rank in ranks], ranks[0][i][3]
        # All of it, once.
        assert sum(nbytes) == whole_nbytes, recipe
        assert max(nbytes) <= 0.75 * whole_nbytes, recipe
        for ours, ddp, *_ in (rank[i] for rank in ranks):
            check_alike(recipe, ours, ranks[0][i][0], ddp, n_ranks)


def test_optimizers() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in {**OPTIMIZERS, **LARC}))


def test_nets() -> None:
    check(*(Recipe(net=net, optimizer="AdamW", planner="ddp") for net in NETS))


def test_recipes() -> None:
    check(
        Recipe(accumulate=3),
        Recipe(autocast=True, optimizer="LARC"),
        Recipe(zero_in_place=True),
        Recipe(accumulate=2, with_closure=True, autocast=True, optimizer="Adam"),
        Recipe(clip_norm=0.01),
        Recipe(clip_norm=0.01, with_closure=True, optimizer="Adam", planner="single"),
    )


def test_three_ranks() -> None:
    check(Recipe(optimizer="AdamW"), Recipe(optimizer="LARC", clip_norm=0.05), n_ranks=3)
