"""EDSR: a residual network without batch normalization for super-resolution.

Lim, Son, Kim, Nah, Lee: Enhanced Deep Residual Networks for Single Image Super-Resolution,
CVPR Workshops 2017, arXiv 1707.02921: figure 2 (block), figure 3 (network), section 3.3 (residual
scaling).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.physics.bicubic import upsample


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """x + residual_scale * conv(relu(conv(x))), on [N, channels, h, w]."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.second(torch.relu(self.first(x)))


def _upsampler(channels: int, scale: int) -> nn.Sequential:
    """Sub-pixel convolutions (Shi et al. 2016, arXiv 1609.05158); x4 is x2 twice, as in EDSR."""
    stages = {2: [2], 3: [3], 4: [2, 2]}[scale]
    layers: list[nn.Module] = []
    for factor in stages:
        layers += [_conv(channels, channels * factor**2), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


class EDSR(nn.Module):
    """[N, image_channels, h, w] in [0, 1] -> [N, image_channels, scale * h, scale * w], unclamped.

    Args:
        channels: width of every hidden layer (paper: 64 or 256).
        blocks: number of residual blocks (paper: 16 or 32).
        scale: 2, 3 or 4.
        residual_scale: factor on each block's branch (paper: 0.1 for the wide net, 1 otherwise).
        image_channels: 3 for RGB.
        bicubic_skip: learn only the difference to bicubic upsampling. The last layer starts at
            zero, so that the untrained net is bicubic and short trainings gain at once (not in the
            paper).

    Raises:
        ValueError: `scale` is not 2, 3 or 4.
    """

    def __init__(
        self,
        channels: int = 64,
        blocks: int = 16,
        scale: int = 2,
        residual_scale: float = 1.0,
        image_channels: int = 3,
        bicubic_skip: bool = False,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}; try scale=2")
        self.scale = scale
        self.bicubic_skip = bicubic_skip
        self.head = _conv(image_channels, channels)
        self.blocks = nn.Sequential(
            *(ResidualBlock(channels, residual_scale) for _ in range(blocks))
        )
        self.body_end = _conv(channels, channels)
        self.upsampler = _upsampler(channels, scale)
        self.tail = _conv(channels, image_channels)
        if bicubic_skip:
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)

    def forward(self, low: Tensor) -> Tensor:
        features = self.head(low)
        features = features + self.body_end(self.blocks(features))
        high = self.tail(self.upsampler(features))
        return high + upsample(low, self.scale) if self.bicubic_skip else high
