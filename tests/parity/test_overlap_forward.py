"""Weights after whole steps, reductions going on into the next forward: beside DDP, bit for bit."""

from __future__ import annotations

from functools import partial

from tests.modes import MODES
from tests.parity import training
from tests.parity.nets import NETS
from tests.parity.training import LARC, OPTIMIZERS, Recipe

WHOLE = {**MODES["overlap_forward"], "scatter_gradients": False}
check = partial(training.check, settings=WHOLE)


def test_optimizers() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in OPTIMIZERS))


def test_larc_looks_and_so_ends_the_wait() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in LARC), leaves_open=False)


def test_three_ranks() -> None:
    check(Recipe(), Recipe(optimizer="AdamW", accumulate=2, autocast=True), n_ranks=3)


def test_nets() -> None:
    check(*(Recipe(net=net, optimizer="AdamW") for net in [*NETS, "shared_reentrant"]))


def test_recipes() -> None:
    check(
        Recipe(accumulate=3),
        Recipe(autocast=True),
        Recipe(zero_in_place=True),
        Recipe(with_closure=True),
        Recipe(accumulate=2, with_closure=True, autocast=True, optimizer="Adam"),
    )


def test_who_looks_at_all_gradients_ends_the_wait_and_finds_them_complete() -> None:
    check(
        Recipe(max_norm=0.01),
        Recipe(max_norm=0.01, with_closure=True, optimizer="Adam"),
        leaves_open=False,
    )


def test_one_group_is_waited_for_by_backward() -> None:
    check(Recipe(planner="ddp"), Recipe(planner="single"), leaves_open=False)
