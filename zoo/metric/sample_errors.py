"""Errors a sample, exact under any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


def relative_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """||estimate - truth|| / ||truth|| of each sample, [N] of [N, ...]; NaN where truth is zero."""
    difference, size = (t.flatten(1).norm(dim=1) for t in (estimate - truth, truth))
    return difference / size.where(size > 0, torch.nan)


def psnr(estimate: Tensor, truth: Tensor, peak: float = 1.0) -> Tensor:
    """10 log10(peak^2 / mean squared error) of each sample in dB, [N] of [N, ...]."""
    mean_squared = (estimate - truth).flatten(1).square().mean(1)
    return 10.0 * torch.log10(peak**2 / mean_squared)


class SampleErrors(Metric):
    """A value a sample and column; repeated samples, as samplers make them, count once.

    `compute` sums over the ranks: all ranks must call it.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, n_samples: int, n_columns: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_samples, n_columns, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n_samples, 1), dist_reduce_fx="sum")

    def update(self, index: Tensor, values: Tensor) -> None:
        """index [N] of the samples, values [N, n_columns]."""
        self.total.index_add_(0, index, values.to(self.total.dtype))
        self.count.index_add_(0, index, self.count.new_ones(len(index), 1))

    def compute(self) -> Tensor:
        """[n_samples, n_columns]; a sample that no rank has seen is NaN."""
        return self.total / self.count


def clamped_psnr(estimate: Tensor, truth: Tensor) -> float:
    """In dB, the mean over samples [n, ...] of pictures whose values go from 0 to 1."""
    return float(psnr(estimate.clamp(0, 1), truth).mean())
