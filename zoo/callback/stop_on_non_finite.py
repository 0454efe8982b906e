"""Stops all ranks alike when training has left the finite numbers."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from zoo.errors import NonFiniteError


class StopOnNonFinite(Callback):
    """Raises NonFiniteError before the optimizer would put a NaN or infinity into the weights.

    [Note: why gradients, not the loss] A rank that raises on its own loss leaves the others
    waiting in their next collective. After the reduction all ranks hold the same gradients, and a
    NaN of one rank has reached all: looking at those, every rank decides alike without another
    collective. That holds where gradients are replicated, not sharded.

    Under fp16 the gradient scaler meets infinities on purpose and skips those steps: there is no
    check then.

    Args:
        every_n_steps: how often to look. Reading the result waits for the device; on an accelerator
            a larger number keeps the queue full, and a NaN then shows up at the next look.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self._loss: Tensor | None = None

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.global_step % self.every_n_steps or _scales_gradients(trainer):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        largest = float(get_total_norm(gradients, norm_type=math.inf))
        if not math.isfinite(largest):
            raise NonFiniteError(self._message(trainer, pl_module, largest))

    def _message(self, trainer: L.Trainer, pl_module: L.LightningModule, largest: float) -> str:
        first = next(
            name
            for name, parameter in pl_module.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        )
        return (
            f"training stopped at step {trainer.global_step}: expected finite gradients, got "
            f"{largest} (first in {first}); the loss on rank {trainer.global_rank} is "
            f"{float(self._loss):g}. No rank has changed its weights in this step. Next, try a "
            "lower learning rate (optimizer.lr=1e-4), clipped gradients "
            "(trainer.gradient_clip_val=1.0), or look for non-finite inputs."
        )


def _scales_gradients(trainer: L.Trainer) -> bool:
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None
