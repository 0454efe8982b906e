"""Tversky loss: overlap of soft masks, false positives and misses weighed apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Tversky(nn.Module):
    """1 - mean over classes of TP / (TP + alpha FP + beta FN), of probabilities over the batch.

    Salehi, Erdogmus, Gholipour 2017, arXiv 1706.05721, equation 4.

    Args:
        alpha, beta: of false positives and misses. Both 0.5: Dice; both 1: Jaccard.
        smooth_px: added above and below: a class absent from the batch costs nothing where none of
            it is predicted.
        background: count class 0 as well.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth_px: float = 1.0,
        background: bool = False,
    ) -> None:
        super().__init__()
        if alpha < 0.0 or beta < 0.0 or alpha + beta == 0.0 or smooth_px <= 0.0:
            raise ValueError(
                "expected alpha, beta >= 0, not both 0, and smooth_px > 0, got "
                f"{alpha}, {beta} and {smooth_px}; try alpha=0.3 beta=0.7 smooth_px=1.0"
            )
        self.alpha, self.beta, self.smooth_px = alpha, beta, smooth_px
        self.background = background

    def forward(
        self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None
    ) -> Tensor:
        """logits [N, C, H, W], labels [N, H, W] int64, pixel_weights [H, 1] or None -> scalar."""
        probability = logits.float().softmax(dim=1)
        truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(probability)
        if pixel_weights is not None:
            probability, truth = probability * pixel_weights, truth * pixel_weights
        hit = (probability * (truth > 0)).sum(dim=(0, 2, 3))
        predicted, true = probability.sum(dim=(0, 2, 3)), truth.sum(dim=(0, 2, 3))
        wrong = self.alpha * (predicted - hit) + self.beta * (true - hit)
        index = (hit + self.smooth_px) / (hit + wrong + self.smooth_px)
        return 1.0 - index[0 if self.background else 1 :].mean()
