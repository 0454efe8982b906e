"""A table of scores a sample, exact under any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class SampleScores(Metric):
    """Rows of scores by the sample's index.

    Samplers repeat samples so that all ranks run equally many steps. A mean over steps would count
    those twice; here a repeated sample adds to its own row's sum and count, so each weighs the
    same. `compute` sums over the ranks: all ranks must call it.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, n_samples: int, n_scores: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(n_samples, n_scores), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n_samples, 1), dist_reduce_fx="sum")

    def update(self, index: Tensor, scores: Tensor) -> None:
        """index: [B] integers, each at most once; scores: [B, n_scores]."""
        index = index.to(self.total.device)
        self.total[index] += scores.to(self.total)
        self.count[index] += 1

    def compute(self) -> Tensor:
        """[n_samples, n_scores]; a sample that no rank has seen is NaN."""
        return self.total / self.count
