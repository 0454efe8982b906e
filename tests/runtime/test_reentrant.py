"""A layer that is used both in a re-entrant checkpoint and outside of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import ReductionError
from tests.parity.nets import WIDTH, DirectAndReentrant
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks
from tests.runtime.branches import Grads, equal, grads_of


def direct_and_reentrant(rank: int, planner: str) -> list[Any]:
    """One layer used both in a re-entrant checkpoint and outside of it."""
    torch.manual_seed(0)
    net = DirectAndReentrant()
    plain = deepcopy(net)
    GradientScheduler(net, GradSchedConfig(planner=planner))
    steps = []
    for i in range(3):
        for module in (net, plain):
            module.zero_grad()
            module(torch.full((2, WIDTH), 0.1 * (rank + 1 + i))).square().sum().backward()
        average_gradients(plain)
        steps.append((grads_of(net), grads_of(plain)))
    return steps


@pytest.mark.parametrize("planner", ["single", "per_tensor"])
def test_a_layer_used_directly_and_in_a_reentrant_checkpoint(planner: str) -> None:
    for steps in run_ranks(2, direct_and_reentrant, planner):
        assert all(equal(ours, reference) for ours, reference in steps)


def late_gradient(rank: int) -> tuple[str, Grads, Grads]:
    """The checkpoint around a shared layer is switched on in the middle of training."""
    torch.manual_seed(0)
    net = DirectAndReentrant()
    plain = deepcopy(net)
    GradientScheduler(net, GradSchedConfig(planner="per_tensor"))
    message = ""
    for i in range(4):
        net.use_checkpoint = plain.use_checkpoint = i >= 2
        x = torch.full((2, WIDTH), 0.1 * (rank + 1 + i))
        net.zero_grad()
        plain.zero_grad()
        plain(x).square().sum().backward()
        average_gradients(plain)
        try:
            net(x).square().sum().backward()
        except ReductionError as error:
            message = f"step {i}: {error}"
    return message, grads_of(net), grads_of(plain)


def test_a_gradient_that_comes_too_late_is_named_and_awaited_from_then_on() -> None:
    for message, ours, reference in run_ranks(2, late_gradient):
        assert message.startswith("step 2: parameter 'shared.")
        assert "From the next step on" in message
        assert equal(ours, reference)
