"""Weights after steps that look at all gradients, which travel in halves: DDP's, bit for bit."""

from __future__ import annotations

from functools import partial
from math import inf

from tests.modes import MODES
from tests.parity import training
from tests.parity.nets import NETS
from tests.parity.training import LARC, OPTIMIZERS, Recipe

HALVES = MODES["scatter_gradients"]
SIZED = {**HALVES, "planner": "fixed_size", "group_nbytes": 600}
# Nothing is said of halves, and the planner measures nothing: what steps do is found out.
UNSAID = {**HALVES, "scatter_gradients": None}
check = partial(training.check, settings=HALVES)
# The scale grows after every other step, and the step after that waits: the last shall not.
clipped = partial(Recipe, max_norm=0.01, n_steps=6)


def test_clipping_by_norm() -> None:
    check(
        clipped(optimizer="SGD"),
        clipped(norm=inf),
        clipped(norm=1.0, foreach=False),
        clipped(foreach=True),
        clipped(accumulate=3),
        clipped(with_closure=True, optimizer="Adam"),
    )


def test_optimizers() -> None:
    check(*(clipped(optimizer=optimizer) for optimizer in OPTIMIZERS))


def test_nets() -> None:
    check(*(clipped(net=net, optimizer="AdamW") for net in NETS))


def test_groups_of_several_parameters() -> None:
    check(clipped(), clipped(init_scale=4.0), settings=SIZED)


def test_clipping_by_value() -> None:
    check(
        clipped(max_norm=None, max_value=1e-4),
        clipped(max_norm=None, max_value=1e-4, foreach=True, optimizer="Adam"),
        clipped(max_value=1e-4),
    )


def test_loss_scaling() -> None:
    check(
        clipped(init_scale=65536.0),
        clipped(init_scale=3.0, optimizer="AdamW", foreach=True),
        clipped(init_scale=65536.0, max_norm=None, accumulate=2),
        clipped(init_scale=65536.0, max_norm=None, unscales=False),
    )


def test_a_step_with_an_infinite_gradient_is_skipped_on_all_ranks() -> None:
    base = clipped(init_scale=1024.0, inf_at=4)
    recipes = [
        base,
        base._replace(max_norm=None),
        base._replace(max_norm=None, unscales=False),
        base._replace(optimizer="fused Adam"),
        base._replace(max_norm=None, optimizer="fused Adam"),
        base._replace(max_norm=None, unscales=False, optimizer="fused Adam"),
    ]
    for rank in check(*recipes, leaves_open=None):  # the scale is another in the step after
        for ours, ddp in rank:
            assert ours.scale == ddp.scale == 2048.0
            assert all(bool(weight.isfinite().all()) for weight in ours.weights.values())


def test_larc_on_the_update_looks_at_weights_and_so_ends_the_wait() -> None:
    check(*(clipped(optimizer=optimizer) for optimizer in LARC), leaves_open=False)


def test_three_ranks() -> None:
    check(clipped(), clipped(optimizer="AdamW", accumulate=2, init_scale=16.0), n_ranks=3)


def test_steps_that_are_found_out_to_clip_or_scale() -> None:
    check(
        clipped(),
        clipped(norm=1.0, foreach=False, accumulate=3),
        clipped(max_norm=None, max_value=1e-4, optimizer="Adam"),
        clipped(with_closure=True, optimizer="Adam"),
        clipped(init_scale=65536.0, max_norm=None, unscales=False),
        clipped(init_scale=65536.0, accumulate=2),
        clipped(net="tied", optimizer="AdamW"),
        settings=UNSAID,
    )
    check(clipped(), settings=UNSAID, n_ranks=3)


def test_steps_that_neither_clip_nor_scale_and_those_that_nothing_can_be_done_about() -> None:
    check(clipped(max_norm=None), settings=UNSAID)
    fused = clipped(optimizer="fused Adam", init_scale=4.0)
    check(fused, settings=UNSAID, leaves_open=False)


def test_who_does_not_ask_waits_for_nothing() -> None:
    check(clipped(max_norm=None), clipped(max_norm=None, optimizer="AdamW", accumulate=2))
