"""Super-resolution as a LightningModule: L1 loss, PSNR and SSIM beside bicubic's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.photographs import Pair, Picture
from zoo.metric.convention import MetricConvention
from zoo.metric.picture_scores import PictureScores, summarize
from zoo.model.scored import Scored, scheduled
from zoo.physics.bicubic import upsample


class SuperResolution(Scored):
    """Trains `net` to undo bicubic downsampling.

    Logs `train/loss` a step, and on whole pictures `val/` and `test/`: `psnr`, `psnr_bicubic`,
    `psnr_gain` (all dB), `ssim`, `ssim_bicubic`. Convention: `zoo.metric.convention`, by default
    the luma channel, a border of `scale` pixels left out, data range 1, clamped, not rounded.

    Args:
        net: [N, 3, h, w] in [0, 1] -> [N, 3, s h, s w], with an attribute `scale` (s).
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> learning rate schedule, advanced every step; None keeps the rate.
        metric_channel: "y" or "rgb".
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        metric_channel: str = "y",
    ) -> None:
        super().__init__()
        self.net = net
        self.scale = int(net.scale)
        self.convention = MetricConvention(border_px=self.scale, channel=metric_channel)
        self.scores: Tensor | None = None
        self._optimizer = optimizer
        self._scheduler = scheduler

    def forward(self, low: Tensor) -> Tensor:
        """[N, 3, h, w] -> [N, 3, s h, s w], clamped to [0, 1]."""
        return self.net(low).clamp(0.0, 1.0)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        # Unclamped, or else pixels outside [0, 1] would get no gradient.
        loss = F.l1_loss(self.net(batch.low), batch.high)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.low))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return scheduled(self._optimizer(self.parameters()), self._scheduler)

    def _begin_scoring(self, pictures: Any) -> None:
        self._picture_scores = PictureScores(len(pictures), self.convention).to(self.device)

    def _score(self, batch: Picture) -> None:
        bicubic = upsample(batch.low, self.scale)
        self._picture_scores.update(int(batch.index), self(batch.low), bicubic, batch.high)

    def _log_scores(self, stage: str) -> None:
        """Log the means and keep the table, [n_pictures, 4], in `scores` on every rank."""
        scores = self._picture_scores.compute()
        self.scores = scores.cpu()
        # Equal on all ranks already; sync_dist only says so to Lightning.
        self.log_dict(
            {f"{stage}/{name}": mean for name, mean in summarize(scores).items()}, sync_dist=True
        )
