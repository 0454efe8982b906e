"""Layers that are frozen and unfrozen in training, alike on all ranks."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks
from tests.runtime.branches import Branches, Grads, equal, grads_of


def unfreeze(rank: int, muted: bool) -> dict[str, Any]:
    """Layer a trains from step 2 on; with ``muted`` it is unfrozen within no_sync."""
    torch.manual_seed(0)
    net = Branches()
    net.a.requires_grad_(False)
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(record_every_n_steps=1))
    steps, plans = [], []
    for i in range(5):
        for module in (net, plain):
            module.zero_grad()
            module.a.requires_grad_(i >= 2)
        for micro_batch in range(2 if muted else 1):
            x = torch.full((2, WIDTH), 0.1 * (rank + 1 + i))
            is_last = micro_batch == 1 or not muted
            for module in (net, plain):
                with nullcontext() if is_last else scheduler.no_sync():
                    module(x, "abc").square().sum().backward()
        average_gradients(plain)
        steps.append((grads_of(net), grads_of(plain)))
        plans.append(scheduler.plan)
    return {"steps": steps, "plans": plans, "n_recorded": scheduler.report().n_steps}


@pytest.mark.parametrize("muted", [False, True])
def test_a_layer_that_is_unfrozen_is_reduced_from_then_on(muted: bool) -> None:
    for seen in run_ranks(2, unfreeze, muted):
        steps, plans = seen["steps"], seen["plans"]
        assert steps[1][0]["a.weight"] is None
        assert steps[2][0]["a.weight"] is not None
        assert all(equal(ours, reference) for ours, reference in steps)
        assert plans[0] is plans[1], "one plan while nothing changes"
        assert plans[3] is plans[4] is not plans[1], "from the backward after the first"
        assert seen["n_recorded"] <= 3, "steps of the old plan are not in the new one's report"


def alternate(rank: int) -> tuple[int, Grads, Grads]:
    """Which layer trains changes with every step, as in alternating optimization."""
    torch.manual_seed(0)
    net = Branches()
    net.a.requires_grad_(False)
    plain = deepcopy(net)
    scheduler = GradientScheduler(net)
    plans = set()
    for i in range(6):
        for module in (net, plain):
            module.zero_grad()
            module.a.requires_grad_(i % 2 == 1)
            module.b.requires_grad_(i % 2 == 0)
            module(torch.full((2, WIDTH), 0.1 * (rank + 1 + i)), "abc").square().sum().backward()
        average_gradients(plain)
        plans.add(scheduler.plan)
    return len(plans), grads_of(net), grads_of(plain)


def test_layers_that_train_in_turns_are_planned_once_each() -> None:
    for n_plans, ours, reference in run_ranks(2, alternate):
        assert n_plans == 2
        assert equal(ours, reference)
