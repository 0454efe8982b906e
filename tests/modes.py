"""The modes in which something goes on past the end of a backward, for tests that hold in each."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from lightning_gradsched import GradientScheduler

MODES: dict[str, dict[str, Any]] = {
    "overlap_forward": {"overlap_forward": True},
    "scatter_gradients": {"overlap_forward": True, "scatter_gradients": True},
    "gradient_lag": {"gradient_lag": 1},
    "shard_optimizer": {"shard_optimizer": True},
}


def attach(scheduler: GradientScheduler, optimizer: Optimizer, settings: dict[str, Any]) -> None:
    """Name ``optimizer`` to the engine, where one of its ``settings`` asks for that."""
    if settings.get("overlap_forward"):
        scheduler.overlap(optimizer)
    if settings.get("shard_optimizer"):
        scheduler.shard(optimizer)
