"""Wiener's filter: the best linear estimate that treats all places of an image alike."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.physics.blur import Blur


class Wiener:
    """y [N, side, side] -> estimate, by the true operator and the spectrum of given images.

    conj(T) S / (|T|^2 S + noise) of the deviations from the mean (Wiener 1949), S the mean squared
    spectrum of the images about their mean gray value.

    Args:
        operator: T.
        images: [n, side, side], to estimate mean and spectrum from.
        noise: standard deviation on a pixel.
    """

    def __init__(self, operator: Blur, images: Tensor, noise: float) -> None:
        self.mean = images.mean()
        spectrum = torch.fft.rfft2(images - self.mean, norm="ortho").abs().square().mean(0)
        multiplier = operator.multiplier.to(images.dtype)
        self.response = multiplier * spectrum / (multiplier**2 * spectrum + noise**2)
        # A blur leaves the mean as it is.
        self.shape = operator.domain.shape

    def __call__(self, y: Tensor) -> Tensor:
        filtered = torch.fft.rfft2(y - self.mean) * self.response
        return self.mean + torch.fft.irfft2(filtered, s=self.shape)
