"""Ranks that freeze, unfreeze or plan each by itself in the middle of training."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import ConsensusError
from tests import measured
from tests.modes import MODES
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks

N_STEPS = 4


def net_of_three() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))


def batch(rank: int, step: int) -> Tensor:
    return torch.full((2, 4), 0.1 * (rank + 1 + step))


def equal_gradients(net: nn.Module, plain: nn.Module) -> bool:
    pairs = zip(net.parameters(), plain.parameters(), strict=True)
    return all(q.grad is None if p.grad is None else torch.equal(p.grad, q.grad) for p, q in pairs)


def average(scheduler: GradientScheduler, hook: bool) -> None:
    """Sums by a communication hook, where ``hook``."""
    if hook:
        scheduler.register_comm_hook(None, halve_and_sum)


def halve_and_sum(_state: None, bucket: Any) -> Any:
    work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def unfreeze(rank: int, layers: tuple[int | None, int | None], fields: dict[str, Any]) -> Any:
    """The first two layers are frozen; in step 1 each rank unfreezes its own of ``layers``.

    What is raised in each step, whether all other gradients were right, and what was sent alone.
    """
    net = net_of_three()
    net[:2].requires_grad_(False)
    plain = deepcopy(net)
    config = dict(fields)
    hook = config.pop("hook", False)
    scheduler = GradientScheduler(net, GradSchedConfig(**config, stall_timeout_s=20.0))
    average(scheduler, hook)
    errors, right = [], []
    for step in range(N_STEPS):
        for module in (net, plain):
            module.zero_grad()
            if step == 1 and layers[rank] is not None:
                module[layers[rank]].requires_grad_(True)
        try:
            net(batch(rank, step)).square().sum().backward()
            errors.append("")
        except ConsensusError as error:
            errors.append(str(error))
            continue
        plain(batch(rank, step)).square().sum().backward()
        average_gradients(plain)
        right.append(equal_gradients(net, plain))
    scheduler.detach()
    return errors, right


WAYS: dict[str, dict[str, Any]] = {
    "planned from the graph": {"planner": "per_tensor"},
    "measured": {},
    "negotiated": {"planner": "per_tensor", "schedule": "negotiated"},
    "in bfloat16": {"planner": "single", "reduce_dtype": "bf16"},
    "by a hook": {"planner": "single", "hook": True},
    "left to the next forward": {"planner": "per_tensor", **MODES["overlap_forward"]},
    "in halves": {"planner": "per_tensor", **MODES["scatter_gradients"]},
}


def unfreeze_each_way(rank: int, layers: tuple[int | None, int | None]) -> dict[str, Any]:
    return {way: unfreeze(rank, layers, fields) for way, fields in WAYS.items()}


def test_a_layer_unfrozen_on_one_rank_is_named_on_all() -> None:
    for ways in run_ranks(2, unfreeze_each_way, (None, 1)):
        for way, (errors, right) in ways.items():
            assert (errors[0], len(right)) == ("", 1), way
            measured.record(f"ConsensusError: {errors[1]}")
            for error in errors[1:]:  # and in each later step, until they agree
                assert error.startswith(
                    "expected all ranks to unfreeze the same parameters before the same backward,"
                    " got none on rank 0 and '1.weight', '1.bias' on rank 1. None of their"
                    " gradients has been sent."
                ), way


def test_ranks_that_unfreeze_unlike_layers_all_say_which() -> None:
    for errors, right in run_ranks(2, unfreeze, (0, 1), WAYS["measured"]):
        assert right == [True]
        for error in errors[1:]:
            assert "'0.weight', '0.bias' on rank 0 and '1.weight', '1.bias'" in error


def test_a_layer_unfrozen_on_all_ranks_is_reduced_at_once() -> None:
    for ways in run_ranks(2, unfreeze_each_way, (0, 0)):
        for way, (errors, right) in ways.items():
            assert errors == [""] * N_STEPS
            # Sums of bfloat16 are not those of the reference.
            assert right == [True] * N_STEPS or way == "in bfloat16"


def freeze(rank: int) -> list[bool]:
    """Rank 1 freezes a layer in step 1, and trains it again in step 3."""
    net = net_of_three()
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(planner="per_tensor", stall_timeout_s=20.0))
    right = []
    for step in range(N_STEPS):
        for module in (net, plain):
            module.zero_grad()
            module[1].requires_grad_(rank == 0 or step not in (1, 2))
            module(batch(rank, step)).square().sum().backward()
        average_gradients(plain)
        right.append(equal_gradients(net, plain))
    scheduler.detach()
    return right


def test_a_layer_frozen_on_one_rank_adds_zeros_there() -> None:
    assert run_ranks(2, freeze) == [[True] * N_STEPS] * 2


def all_frozen_at_first(rank: int) -> list[bool]:
    net = net_of_three().requires_grad_(False)
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(stall_timeout_s=20.0))
    right = []
    for step in range(2):
        for module in (net, plain):
            module[2].requires_grad_(True)
            module.zero_grad()
            module(batch(rank, step)).square().sum().backward()
        average_gradients(plain)
        right.append(equal_gradients(net, plain))
    scheduler.detach()
    return right


def test_a_module_that_is_all_frozen_at_first_is_reduced_once_it_trains() -> None:
    assert run_ranks(2, all_frozen_at_first) == [[True, True]] * 2


def lose_count(rank: int) -> list[str]:
    """Rank 1 believes to have measured one step more than it has, and would plan too early."""
    net = net_of_three()
    scheduler = GradientScheduler(net, GradSchedConfig(planner="optimal", stall_timeout_s=20.0))
    errors = []
    for step in range(8):
        if (rank, step) == (1, 2):
            scheduler._planning.profiler.step_ended()
        net.zero_grad()
        try:
            net(batch(rank, step)).square().sum().backward()
            errors.append("")
        except ConsensusError as error:
            errors.append(str(error))
    return errors


def test_ranks_that_would_not_plan_after_the_same_backward_all_say_so() -> None:
    for errors in run_ranks(2, lose_count):
        assert errors[:5] == [""] * 5
        measured.record(f"ConsensusError: {errors[5]}")
        assert errors[5].startswith("expected all ranks to plan anew after the same backward, got")
        assert "They have reduced 6 on rank 0, 6 on rank 1 backwards" in errors[5]
