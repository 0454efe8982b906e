"""A periodic signal, smoothed: the mildly ill-posed operator of statistical inverse problems."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.physics.operator import Space


def smoothing_multiplier(n: int, beta: float) -> Tensor:
    """[n // 2 + 1] float64: k^-beta at the frequencies k = 0 ... n / 2 of a signal; 0 at k = 0.

    The highest frequency, which a grid of n points holds only half of, is 0 too.
    """
    multiplier = torch.arange(n // 2 + 1, dtype=torch.float64).clamp_min(1.0) ** -beta
    multiplier[0] = multiplier[n // 2] = 0.0
    return multiplier


class Smoothing(nn.Module):
    """f [N, n] -> T f [N, n], T the Fourier multiplier |k|^-beta: as many derivatives are lost.

    Args:
        n: grid points, even. beta: degree of ill-posedness.

    Raises:
        ValueError: n is odd, or beta is negative.
    """

    is_linear = True

    def __init__(self, n: int = 256, beta: float = 1.0) -> None:
        super().__init__()
        if n % 2 or beta < 0:
            raise ValueError(
                f"n must be even and beta not negative, got n={n}, beta={beta}; try n=256 beta=1"
            )
        self.domain = self.codomain = Space((n,))
        self.register_buffer("multiplier", smoothing_multiplier(n, beta), persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        self.domain.require("f", f)
        spectrum = torch.fft.rfft(f) * self.multiplier.to(f.dtype)
        return torch.fft.irfft(spectrum, n=f.shape[1])

    def adjoint(self, y: Tensor) -> Tensor:
        """The operator is its own adjoint."""
        return self(y)
