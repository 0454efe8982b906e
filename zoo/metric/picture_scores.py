"""Scores a picture, exact under any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.metric.convention import MetricConvention
from zoo.metric.sample_scores import SampleScores

COLUMNS = ("psnr", "ssim", "psnr_bicubic", "ssim_bicubic")


class PictureScores(SampleScores):
    """PSNR and SSIM of a method and of bicubic upsampling, a row a picture, as `SampleScores`."""

    def __init__(self, n_pictures: int, convention: MetricConvention) -> None:
        super().__init__(n_pictures, len(COLUMNS))
        self.convention = convention

    def update(self, index: int, restored: Tensor, bicubic: Tensor, truth: Tensor) -> None:
        """Score picture `index`; images are [1, 3, H, W] RGB."""
        scored = [self.convention.psnr_and_ssim(image, truth) for image in (restored, bicubic)]
        super().update(torch.tensor([index]), torch.cat(scored)[None])


def summarize(scores: Tensor) -> dict[str, Tensor]:
    """Means over the pictures seen, and the mean gain of PSNR over bicubic in dB."""
    means = dict(zip(COLUMNS, scores.nanmean(dim=0), strict=True))
    return means | {"psnr_gain": means["psnr"] - means["psnr_bicubic"]}
