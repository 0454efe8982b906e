"""Focal loss: cross-entropy that turns away from pixels that are right already."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from zoo.loss.class_weights import ClassWeighted


class Focal(ClassWeighted):
    """Mean over pixels of weight(class) * (1 - p)^gamma * -log p, p the class's probability.

    Lin, Goyal, Girshick, He, Dollár 2017, arXiv 1708.02002, equation 5, for several classes.

    Args:
        gamma: 0 leaves weighted cross-entropy; 2 in the paper and in Kurth et al.'s code.
        class_weights, exponent, normalize: see `zoo.loss.class_weights`.
    """

    def __init__(
        self,
        n_classes: int = 3,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        exponent: float = 0.5,
        normalize: bool = True,
    ) -> None:
        super().__init__(n_classes, class_weights, exponent, normalize)
        if gamma < 0.0:
            raise ValueError(f"expected gamma >= 0, got {gamma}; try gamma=2.0")
        self.gamma = gamma

    def forward(
        self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None
    ) -> Tensor:
        """logits [N, C, H, W], labels [N, H, W] int64, pixel_weights [H, 1] or None -> scalar."""
        entropy = F.cross_entropy(logits.float(), labels, reduction="none")
        # -expm1(log p) is 1 - p without cancellation where p is nearly 1.
        missing = -(-entropy).expm1()
        weights = self.weights_at(labels, pixel_weights)
        return (weights * missing**self.gamma * entropy).mean()
