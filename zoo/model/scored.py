"""What the models share: validation and test by samples, and how an optimizer is scheduled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Scored(L.LightningModule, ABC):
    """Scores the samples of a validation and of a test alike, each once, and logs at the end."""

    @abstractmethod
    def _begin_scoring(self, samples: Any) -> None:
        """Before the first batch; `samples` is the data set, with a length."""

    @abstractmethod
    def _score(self, batch: Any) -> None:
        """One batch."""

    @abstractmethod
    def _log_scores(self, stage: str) -> None:
        """After the last batch; `stage` is "val" or "test"."""

    def on_validation_epoch_start(self) -> None:
        self._begin_scoring(self.trainer.val_dataloaders.dataset)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        self._begin_scoring(self.trainer.test_dataloaders.dataset)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score(batch)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")


def scheduled(
    optimizer: Optimizer, scheduler: Callable[[Optimizer], LRScheduler] | None
) -> OptimizerLRScheduler:
    """`optimizer` with its learning rate schedule, advanced every step; None keeps the rate."""
    if scheduler is None:
        return optimizer
    schedule: dict[str, Any] = {"scheduler": scheduler(optimizer), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": schedule}
