"""Learning an inverse map from samples: what the models of the zoo's small problems share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.samples import Sample
from zoo.metric.sample_errors import SampleErrors, psnr, relative_error
from zoo.model.scored import Scored, scheduled

COLUMNS = ("relative_error", "psnr", "squared_error")


class Inverse(Scored):
    """Trains `net`: data -> estimate of the truth, by least squares (nDNN, supervised regression).

    Logs `train/loss` a step, and as means over the samples `val/` and `test/`: `relative_error`,
    ||estimate - truth|| / ||truth||, `psnr` (dB, peak 1), `squared_error`, ||estimate - truth||^2.

    Args:
        net: data [N, ...] -> estimate [N, ...].
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> learning rate schedule, advanced every step; None keeps the rate.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.scores: Tensor | None = None

    def forward(self, data: Tensor) -> Tensor:
        return self.net(data)

    def loss(self, batch: Sample) -> Tensor:
        """The mean over samples of 1/2 ||truth - net(data)||^2."""
        return 0.5 * (self(batch.data) - batch.truth).flatten(1).square().sum(1).mean()

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.truth))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return scheduled(self._optimizer(self.parameters()), self._scheduler)

    def errors(self, batch: Sample) -> Tensor:
        """[N, 3] by `COLUMNS`."""
        estimate = self(batch.data)
        squared = (estimate - batch.truth).flatten(1).square().sum(1)
        relative, decibels = relative_error(estimate, batch.truth), psnr(estimate, batch.truth)
        return torch.stack([relative, decibels, squared], dim=1)

    def _begin_scoring(self, samples: Any) -> None:
        self._errors = SampleErrors(len(samples), len(COLUMNS)).to(self.device)

    def _score(self, batch: Sample) -> None:
        self._errors.update(batch.index, self.errors(batch))

    def _log_scores(self, stage: str) -> None:
        """Log the means and keep the table, [n_samples, 3], in `scores` on every rank."""
        scores = self._errors.compute()
        self.scores = scores.cpu()
        means = zip(COLUMNS, scores.nanmean(dim=0), strict=True)
        # Equal on all ranks already; sync_dist only says so to Lightning.
        self.log_dict({f"{stage}/{name}": mean for name, mean in means}, sync_dist=True)
