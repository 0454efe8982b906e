"""Whole fits that clip or scale, their groups in halves, beside ``ddp``: weights and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.plugins import MixedPrecision

from lightning_gradsched import GradSchedStrategy
from lightning_gradsched.fabric import GradSchedFabricStrategy
from tests.ranks import run_ranks
from tests.strategy import modules
from tests.strategy.test_overlap_forward import FITS, OVERLAP, alike, fit

HALVES = {**OVERLAP, "scatter_gradients": True}
CLIPS = {"gradient_clip_val": 0.05}


def scaled() -> dict[str, Any]:
    """Half precision, and a scaler whose scale changes now and then."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def options_of(name: str) -> dict[str, Any]:
    """Anew for each fit: a plugin has a scale of its own."""
    return {
        "clipped": {**CLIPS},
        "clip_value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        "clipped_accumulated": {**CLIPS, "accumulate_grad_batches": 2},
        "fp16": scaled(),
        "fp16_clipped": {**scaled(), **CLIPS},
    }[name]


NAMES = ("clipped", "clip_value", "clipped_accumulated", "fp16", "fp16_clipped")


def all_fits(rank: int) -> list[str]:
    wrong = []
    for name in NAMES:
        results = []
        for strategy in (GradSchedStrategy(**HALVES), "ddp"):
            FITS[name] = (modules.Regression, options_of(name), [])
            results.append(fit(rank, name, strategy))
        if not alike(*results):
            wrong.append(name)
    return wrong


@pytest.mark.slow
def test_fits_end_as_with_ddp() -> None:
    assert run_ranks(2, all_fits, timeout_s=240) == [[], []]


def fabric_steps(rank: int) -> bool:
    results = []
    for strategy in (GradSchedFabricStrategy(**HALVES), "ddp"):
        fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
        fabric.launch()
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        bare = net
        net, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=0.1))
        for step in range(4):
            optimizer.zero_grad()
            fabric.backward(net(torch.full((2, 4), 1.0 + rank + step)).square().mean())
            fabric.clip_gradients(net, optimizer, max_norm=0.1)
            optimizer.step()
        if strategy != "ddp":
            assert fabric.strategy.scheduler(net).n_open == 3
        results.append([p.detach().clone() for p in bare.parameters()])
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_fabric() -> None:
    assert run_ranks(2, fabric_steps) == [True, True]
