"""A blur of periodic images by a Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.physics.operator import Space


class Blur(nn.Module):
    """x [N, side, side] -> its convolution with a Gaussian on a torus, [N, side, side].

    Args:
        side_px: of the image. width_px: standard deviation of the Gaussian.

    Raises:
        ValueError: `width_px` is not positive.
    """

    is_linear = True

    def __init__(self, side_px: int = 32, width_px: float = 1.5) -> None:
        super().__init__()
        if width_px <= 0:
            raise ValueError(f"width_px must be positive, got {width_px}; try width_px=1.5")
        self.domain = self.codomain = Space((side_px, side_px))
        k = 2.0 * math.pi * torch.fft.fftfreq(side_px, dtype=torch.float64)
        one = torch.exp(-0.5 * (width_px * k) ** 2)
        half = one[: side_px // 2 + 1]
        self.register_buffer("multiplier", one[:, None] * half, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.domain.require("x", x)
        spectrum = torch.fft.rfft2(x) * self.multiplier.to(x.dtype)
        return torch.fft.irfft2(spectrum, s=self.domain.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """The operator is its own adjoint."""
        return self(y)
