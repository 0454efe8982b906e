"""Cross-entropy with a weight a class, in float32 whatever the logits are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from zoo.loss.class_weights import ClassWeighted

REDUCTIONS = ("mean", "weighted_mean", "sum")


class WeightedCrossEntropy(ClassWeighted):
    """scale * reduction over pixels of weight(class) * -log softmax(logits)[class].

    Args:
        class_weights: one a class; None derives them from the training set's frequencies.
        exponent, normalize: of frequency to weight: 0.5 and True in Kurth et al. 2018, 0.125 and
            False in DeepCAM; see `zoo.loss.class_weights`.
        reduction: "mean" over pixels, DeepCAM's; "weighted_mean", over the sum of weights, which
            differs from rank to rank; "sum" over pixels and batch, Kurth et al.'s.
        scale: 0.1 with "sum" in Kurth et al.: their whole loss scaling.
    """

    def __init__(
        self,
        n_classes: int = 3,
        class_weights: Sequence[float] | None = None,
        exponent: float = 0.5,
        normalize: bool = True,
        reduction: Literal["mean", "weighted_mean", "sum"] = "weighted_mean",
        scale: float = 1.0,
    ) -> None:
        super().__init__(n_classes, class_weights, exponent, normalize)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
        self.reduction, self.scale = reduction, scale

    def forward(
        self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None
    ) -> Tensor:
        """logits [N, C, H, W], labels [N, H, W] int64, pixel_weights [H, 1] or None -> scalar."""
        weights = self.weights_at(labels, pixel_weights)
        losses = weights * F.cross_entropy(logits.float(), labels, reduction="none")
        if self.reduction == "sum":
            return self.scale * losses.sum()
        if self.reduction == "mean":
            return self.scale * losses.mean()
        return self.scale * losses.sum() / weights.sum()
