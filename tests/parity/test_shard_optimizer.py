"""Weights after whole steps, each rank updating its part of them: beside DDP, bit for bit."""

from __future__ import annotations

from tests.modes import MODES
from tests.parity import training
from tests.parity.nets import NETS
from tests.parity.training import LARC, OPTIMIZERS, Recipe


def check(*recipes: Recipe, n_ranks: int = 2) -> None:
    ranks = training.check(*recipes, settings=MODES["shard_optimizer"], n_ranks=n_ranks)
    for i, recipe in enumerate(recipes):
        nbytes = [rank[i][0].state_nbytes for rank in ranks]
        _, ddp = ranks[0][i]
        # All of it, once.
        assert sum(nbytes) == ddp.state_nbytes, recipe
        assert max(nbytes) <= 0.75 * ddp.state_nbytes, recipe


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
        Recipe(max_norm=0.01),
        Recipe(max_norm=0.01, with_closure=True, optimizer="Adam", planner="single"),
    )


def test_three_ranks() -> None:
    check(Recipe(optimizer="AdamW"), Recipe(optimizer="LARC", max_norm=0.05), n_ranks=3)
