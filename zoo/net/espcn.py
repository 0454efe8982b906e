"""ESPCN: a chain of convolutions on the small image, and sub-pixels at the end.

Shi et al. 2016, arXiv 1609.05158, figure 1: no skips, so that the product of its layers' norms
bounds its Jacobian.
"""

from __future__ import annotations

from torch import Tensor, nn


class ESPCN(nn.Module):
    """[N, 1, h, w] in [0, 1] -> [N, 1, scale * h, scale * w], unclamped.

    Args:
        channels: of the two hidden layers (paper: 64 and 32).
        scale: 2, 3 or 4.
    """

    def __init__(self, channels: tuple[int, int] = (64, 32), scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        first, second = channels
        self.layers = nn.Sequential(
            nn.Conv2d(1, first, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, low: Tensor) -> Tensor:
        return self.layers(low)
