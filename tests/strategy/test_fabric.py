"""A Fabric loop: ``gradsched`` and ``ddp`` from one seed end with the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from lightning_gradsched import GradSchedFabricStrategy
from tests.ranks import errors_of_ranks, run_ranks

WIDTH = 8
Weights = dict[str, Tensor]


def make_fabric(strategy: Any, **options: Any) -> Fabric:
    warnings.simplefilter("ignore")
    fabric = Fabric(strategy=strategy, accelerator="cpu", devices=2, **options)
    fabric.launch()
    return fabric


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def loop(rank: int, strategy: Any, precision: str) -> Weights:
    """Two models; the first accumulates and is clipped."""
    fabric = make_fabric(strategy, precision=precision)
    torch.manual_seed(rank)
    pairs = [
        fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        for model in (net(), nn.Linear(WIDTH, 1))
    ]
    generator = torch.Generator().manual_seed(100 + rank)
    for batch in range(12):
        x = torch.randn(4, WIDTH, generator=generator)
        y = x.sum(1, keepdim=True).sin()
        for i, (model, optimizer) in enumerate(pairs):
            accumulates = i == 0 and batch % 3 != 2
            with fabric.no_backward_sync(model, enabled=accumulates):
                fabric.backward(F.mse_loss(model(x), y))
            if not accumulates:
                fabric.clip_gradients(model, optimizer, max_norm=0.5)
                optimizer.step()
                optimizer.zero_grad()
    return {
        f"{i}.{name}": value.detach().clone()
        for i, (model, _) in enumerate(pairs)
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_ends_with_the_weights_of_ddp(precision: str) -> None:
    ours = run_ranks(2, loop, "gradsched", precision)
    theirs = run_ranks(2, loop, "ddp", precision)
    for rank in range(2):
        assert ours[rank].keys() == theirs[rank].keys(), "nothing is wrapped"
        for name, value in theirs[rank].items():
            assert torch.equal(ours[rank][name], value), (rank, name)


def life(rank: int) -> dict[str, Any]:
    strategy = GradSchedFabricStrategy(planner="ddp", record_every_n_steps=1)
    fabric = make_fabric(strategy)
    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, 1)
    model = fabric.setup(plain)
    scheduler = strategy.scheduler(model)
    scheduler.register_comm_hook(None, default_hooks.allreduce_hook)
    for _ in range(3):
        model.zero_grad()
        fabric.backward(model(torch.full((2, WIDTH), float(rank))).sum())
    return {
        "one": scheduler is strategy.scheduler(plain),
        "grad": plain.weight.grad.clone(),
        "n_recorded": scheduler.report().n_steps,
    }


def test_the_engine_of_a_module() -> None:
    for seen in run_ranks(2, life):
        assert seen["one"]
        assert torch.equal(seen["grad"], torch.full((1, WIDTH), 2 * 0.5))
        assert seen["n_recorded"] == 2


def not_set_up(rank: int) -> None:
    fabric = make_fabric(GradSchedFabricStrategy())
    fabric.strategy.scheduler(nn.Linear(1, 1))


def test_a_module_that_was_not_set_up_has_no_engine() -> None:
    for message in errors_of_ranks(2, not_set_up):
        assert message.startswith("GradSchedError: expected a module that was set up, got Linear")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(TypeError, match="need no flag"):
        GradSchedFabricStrategy(find_unused_parameters=True)
    with pytest.raises(ValueError, match=r"reduce_dtype: expected one of .*'bf16'.*got 'int8'"):
        GradSchedFabricStrategy(reduce_dtype="int8")
