"""Lovász-softmax: a convex surrogate of 1 - IoU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lovasz(nn.Module):
    """Mean, over the classes that the labels hold, of the Lovász extension of 1 - IoU.

    Berman, Rannen Triki, Blaschko 2018, arXiv 1705.08790, equations 8 and 11: sorts the pixels of
    a class by their error, so it costs a sort a class.

    Args:
        per_sample: one IoU a sample, as MLPerf scores; otherwise one for the batch's pixels.
    """

    def __init__(self, per_sample: bool = False) -> None:
        super().__init__()
        self.per_sample = per_sample

    def forward(
        self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None
    ) -> Tensor:
        """logits [N, C, H, W], labels [N, H, W] int64, pixel_weights [H, 1] or None -> scalar."""
        probability = logits.float().softmax(dim=1).movedim(1, -1)
        weights = torch.ones_like(labels, dtype=torch.float32)
        if pixel_weights is not None:
            weights = weights * pixel_weights
        if not self.per_sample:
            return _of_pixels(probability.flatten(0, 2), labels.flatten(), weights.flatten())
        samples = zip(probability.flatten(1, 2), labels.flatten(1), weights.flatten(1), strict=True)
        return torch.stack([_of_pixels(*sample) for sample in samples]).mean()


def _of_pixels(probability: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """[P, C], [P], [P] -> scalar."""
    losses = []
    for of_class, of_label in enumerate(labels.bincount(minlength=probability.shape[1]).tolist()):
        if not of_label:
            continue
        truth = (labels == of_class).float()
        errors, order = (truth - probability[:, of_class]).abs().sort(descending=True)
        losses.append(torch.dot(errors, _jaccard_steps(truth[order], weights[order])))
    return torch.stack(losses).mean()


def _jaccard_steps(truth: Tensor, weights: Tensor) -> Tensor:
    """[P] by falling error -> [P]: how much 1 - IoU grows as each pixel more is wrong."""
    inside = weights * truth
    intersection = inside.sum() - inside.cumsum(0)
    union = inside.sum() + (weights - inside).cumsum(0)
    # A pixel of weight 0 may come first, or be all that a class has.
    jaccard = torch.where(union > 0, 1.0 - intersection / union.clamp(min=1e-30), 0.0)
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))
