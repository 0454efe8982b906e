"""Scores a picture, exact under any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.metric.convention import MetricConvention

COLUMNS = ("psnr", "ssim", "psnr_bicubic", "ssim_bicubic")


class PictureScores(Metric):
    """PSNR and SSIM of a method and of bicubic upsampling, a row a picture.

    Samplers repeat pictures so that all ranks run equally many steps. A mean over steps would count
    those twice; here a repeated picture adds to its own row's sum and count, so each picture weighs
    the same. `compute` sums over the ranks: all ranks must call it.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, n_pictures: int, convention: MetricConvention) -> None:
        super().__init__()
        self.convention = convention
        self.add_state("total", torch.zeros(n_pictures, len(COLUMNS)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n_pictures, 1), dist_reduce_fx="sum")

    def update(self, index: int, restored: Tensor, bicubic: Tensor, truth: Tensor) -> None:
        """Score picture `index`; images are [1, 3, H, W] RGB."""
        scored = [self.convention.psnr_and_ssim(image, truth) for image in (restored, bicubic)]
        self.total[index] += torch.cat(scored)
        self.count[index] += 1

    def compute(self) -> Tensor:
        """[n_pictures, 4] by `COLUMNS`; a picture that no rank has seen is NaN."""
        return self.total / self.count


def summarize(scores: Tensor) -> dict[str, Tensor]:
    """Means over the pictures seen, and the mean gain of PSNR over bicubic in dB."""
    means = dict(zip(COLUMNS, scores.nanmean(dim=0), strict=True))
    return means | {"psnr_gain": means["psnr"] - means["psnr_bicubic"]}
