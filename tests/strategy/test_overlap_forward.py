"""Whole fits with ``overlap_forward``, beside ``ddp``: weights, states, and what callbacks see."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor

from lightning_gradsched import GradSchedStrategy
from tests.ranks import run_ranks
from tests.strategy import modules
from tests.strategy.fabric_steps import alike, steps_as_with_ddp
from tests.strategy.test_fit import CASES, PARTIAL, trainer

OVERLAP = {"planner": "per_tensor", "overlap_forward": True, "scatter_gradients": False}


class Scheduled(modules.Regression):
    """AdamW, whose rate and betas change at every step; validation in the midst of an epoch."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rates, "interval": "step"},
        }

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", torch.nn.functional.mse_loss(self(x), y), sync_dist=True)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class Watcher(Callback):
    """Notes the norms that callbacks may read: of gradients before and after a step, of weights."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self._note(p.grad for p in pl_module.parameters())

    def on_before_zero_grad(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self._note(p.grad for p in pl_module.parameters() if p.grad is not None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any
    ) -> None:
        self._note(p.detach() for p in pl_module.parameters())

    def _note(self, tensors: Any) -> None:
        self.seen.append(float(torch.nn.utils.get_total_norm(list(tensors))))


class Openness(Callback):
    """The most groups that a batch has left open."""

    most = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any
    ) -> None:
        if isinstance(trainer.strategy, GradSchedStrategy):
            self.most = max(self.most, trainer.strategy.scheduler.n_open)


FITS: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    **{
        name: (*CASES[name], [])
        for name in (
            "plain",
            "accumulation",
            "clip_norm",
            "two_optimizers",
            "manual_accumulation",
            "bf16_mixed",
            "bf16_true",
            "normalized",
            "unused_on_one_rank",
        )
    },
    "scheduled": (Scheduled, {"val_check_interval": 2}, []),
    "watched": (Scheduled, {}, [Watcher]),
    "averaged": (Scheduled, {}, [EMAWeightAveraging]),
}


# Clipping and the watcher look at all gradients before the step. Where a backward does not reach
# all parameters (PARTIAL), it waits for their groups.
LOOKED_AT = {"clip_norm", "watched"}


def fit(rank: int, name: str, strategy: Any) -> dict[str, Any]:
    make, options, callbacks = FITS[name]
    pl.seed_everything(rank, verbose=False)
    module = make()
    openness = Openness()
    called = [openness, *(make_callback() for make_callback in callbacks)]
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(strategy, folder, callbacks=called, **options)
        run.fit(module)
        path = Path(folder, "last.ckpt")
        run.save_checkpoint(path)
        state = torch.load(path, weights_only=True) if rank == 0 else {}
    if isinstance(strategy, GradSchedStrategy):
        assert name in PARTIAL or (openness.most > 0) is (name not in LOOKED_AT), name
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "metrics": dict(run.callback_metrics),
        "optimizers": state.get("optimizer_states"),
        "seen": [callback.seen for callback in called if isinstance(callback, Watcher)],
    }


def all_fits(rank: int) -> list[str]:
    wrong = []
    for name in FITS:
        ddp = "ddp_find_unused_parameters_true" if name in PARTIAL else "ddp"
        ours = fit(rank, name, GradSchedStrategy(**OVERLAP))
        if not alike(ours, fit(rank, name, ddp)):
            wrong.append(name)
    return wrong


@pytest.mark.slow
def test_fits_end_as_with_ddp_in_weights_states_and_what_callbacks_see() -> None:
    assert run_ranks(2, all_fits, timeout_s=240) == [[], []]


def test_fabric() -> None:
    assert run_ranks(2, steps_as_with_ddp, OVERLAP) == [(True, 3)] * 2
