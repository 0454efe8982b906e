"""Dice loss: twice the overlap of soft masks by their sizes."""

from __future__ import annotations

from zoo.loss.tversky import Tversky


class Dice(Tversky):
    """1 - mean over classes of 2 TP / (2 TP + FP + FN), of probabilities over the batch.

    Milletari, Navab, Ahmadi 2016, arXiv 1606.04797, with sizes in place of their squares: Tversky's
    loss with both weights a half.
    """

    def __init__(self, smooth_px: float = 1.0, background: bool = False) -> None:
        super().__init__(0.5, 0.5, smooth_px, background)
