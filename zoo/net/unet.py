"""A small two-dimensional U-net.

O. Ronneberger, P. Fischer, T. Brox, MICCAI 2015 (arXiv 1505.04597), with convolutions that keep the
size, bilinear upsampling, and a last layer of zeros.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """[N, in_channels, H, W] -> [N, out_channels, H, W], of any height and width.

    Zero at the start of training: what it is added to, or the middle of the range it is squashed
    into, is the first guess.

    Args:
        channels: of the first level; each level below has twice as many.
        n_levels: resolutions, each half the one before.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int, n_levels: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(n_levels)]
        self.down = nn.ModuleList(
            _block(before, after) for before, after in pairwise([in_channels, *widths])
        )
        self.up = nn.ModuleList(_block(below + here, here) for here, below in pairwise(widths))
        self.last = nn.Conv2d(channels, out_channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        height_px, width_px = x.shape[-2:]
        multiple = 2 ** len(self.up)
        padding = (0, -width_px % multiple, 0, -height_px % multiple)
        x = F.pad(x, padding, mode="replicate") if any(padding) else x
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.last(x)[..., :height_px, :width_px]


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(),
    )
