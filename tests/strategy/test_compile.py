"""Compiled modules under Lightning, in its own ways: DDP's weights, and groups that leave early."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.utils import counters

from lightning_gradsched import GradSchedStrategy
from lightning_gradsched.core.timeline import COMMUNICATION, QUEUE
from lightning_gradsched.strategy import GradSchedMixin
from tests.ranks import run_ranks
from tests.strategy import modules
from tests.strategy.test_fit import Weights, trainer

GROUPS = {"planner": "fixed_size", "group_nbytes": 600, "record_every_n_steps": 1}


class Configured(modules.Regression):
    """Compiles itself when Lightning asks for it."""

    def configure_model(self) -> None:
        self.compile(backend="aot_eager")


def fit(rank: int, how: str, strategy: str) -> tuple[Weights, list[tuple[float, float]]]:
    """The weights; under gradsched, when the first group left and the last was ready, by step."""
    torch.set_num_threads(1)
    pl.seed_everything(rank, verbose=False)
    module = Configured() if how == "configure_model" else modules.Regression()
    given: Any = torch.compile(module, backend="aot_eager") if how == "given compiled" else module
    run = trainer(GradSchedStrategy(**GROUPS) if strategy == "gradsched" else "ddp", max_epochs=1)
    run.fit(given)
    assert counters["stats"]["unique_graphs"] > 0, "something has been compiled"
    times = []
    if isinstance(run.strategy, GradSchedMixin):
        for timeline in run.strategy.scheduler.timelines():
            left = [s.start_s for s in timeline.spans if s.track == COMMUNICATION]
            ready = [s.start_s for s in timeline.spans if s.track == QUEUE]
            times.append((min(left), max(ready)))
    return {name: value.detach().clone() for name, value in module.state_dict().items()}, times


@pytest.mark.slow
@pytest.mark.parametrize("how", ["given compiled", "configure_model"])
def test_fits_end_as_with_ddp_and_groups_leave_early(how: str) -> None:
    ours = run_ranks(2, fit, how, "gradsched", timeout_s=240.0)
    theirs = run_ranks(2, fit, how, "ddp", timeout_s=240.0)
    for (weights, times), (expected, _) in zip(ours, theirs, strict=True):
        for name, value in expected.items():
            assert torch.equal(weights[name], value), name
        assert times
        assert all(left_s < ready_s for left_s, ready_s in times)
