"""Errors relative to the truth's norm, a number an image."""

from __future__ import annotations

from torch import Tensor


def relative_l2(image: Tensor, truth: Tensor) -> Tensor:
    """||truth - image|| / ||truth|| of each of N images, [N, ...] -> [N]; float32 or finer."""
    image, truth = image.flatten(1).float(), truth.flatten(1).float()
    return (truth - image).norm(dim=1) / truth.norm(dim=1)


def norm_difference(image: Tensor, truth: Tensor) -> Tensor:
    """| ||truth|| - ||image|| | / ||truth||, [N, ...] -> [N]. No error measure: see below.

    It is what the code of Laanait et al. 2019 reports, times 100, as `rMSE` (stemdl, `losses.py`).
    It compares norms only: an image with its pixels permuted scores 0. Kept to read their numbers.
    """
    image, truth = image.flatten(1).float(), truth.flatten(1).float()
    return (truth.norm(dim=1) - image.norm(dim=1)).abs() / truth.norm(dim=1)
