"""Whole fits that clip or scale, their groups in halves, beside ``ddp``: weights and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_gradsched import GradSchedStrategy
from tests.ranks import run_ranks
from tests.strategy import modules
from tests.strategy.fabric_steps import alike, steps_as_with_ddp
from tests.strategy.test_fit import trainer
from tests.strategy.test_overlap_forward import FITS, OVERLAP, fit

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


# Nothing is said of halves, and the planner measures nothing.
UNSAID = {**OVERLAP, "scatter_gradients": None}
NAMES = ("clipped", "clip_value", "clipped_accumulated", "fp16", "fp16_clipped")


def all_fits(rank: int, config: dict[str, Any]) -> list[str]:
    wrong = []
    for name in NAMES:
        results = []
        for strategy in (GradSchedStrategy(**config), "ddp"):
            FITS[name] = (modules.Regression, options_of(name), [])
            results.append(fit(rank, name, strategy))
        if not alike(*results):
            wrong.append(name)
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("config", [HALVES, UNSAID], ids=["True", "None"])
def test_fits_end_as_with_ddp(config: dict[str, Any]) -> None:
    assert run_ranks(2, all_fits, config, timeout_s=240) == [[], []]


class Clips(modules.Manual):
    """Of its clipping the Trainer knows nothing."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self(x) - y).square().mean())
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
        optimizer.step()


def plan_of_fit(
    rank: int, make: Any, options: dict[str, Any], config: dict[str, Any]
) -> tuple[str, bool]:
    """The plan that a fit comes to, and whether it ends as ``ddp``'s does."""
    strategy, weights = GradSchedStrategy(**config), []
    for used in (strategy, "ddp"):
        torch.manual_seed(0)
        module = make()
        trainer(used, **options).fit(module)
        weights.append({name: value.clone() for name, value in module.state_dict().items()})
    plan = strategy.scheduler.plan
    assert plan is not None
    assert plan.planner.endswith("in halves") is any(plan.owners)
    return plan.planner, alike(*weights)


@pytest.mark.parametrize(
    ("make", "options", "config", "planner"),
    [
        (modules.Regression, CLIPS, UNSAID, "per_tensor in halves"),
        (Clips, {}, UNSAID, "per_tensor in halves"),
        (modules.Regression, {}, UNSAID, "per_tensor"),
        (modules.Regression, CLIPS, {**UNSAID, "scatter_gradients": False}, "per_tensor"),
        (modules.Regression, CLIPS, {**UNSAID, "reduce_dtype": "fp32"}, "per_tensor"),
    ],
)
def test_fits_go_in_halves_where_they_are_seen_to_clip(
    make: Any, options: dict[str, Any], config: dict[str, Any], planner: str
) -> None:
    ranks = run_ranks(2, plan_of_fit, make, options, config)
    assert ranks == [(planner, True), (planner, True)]


@pytest.mark.parametrize("config", [HALVES, UNSAID], ids=["True", "None"])
def test_fabric(config: dict[str, Any]) -> None:
    assert run_ranks(2, steps_as_with_ddp, config, 0.1) == [(True, 3)] * 2
