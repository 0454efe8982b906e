"""Bicubic resampling: the degradation of super-resolution, and its plain inverse.

Both are `torch.nn.functional.interpolate` with Keys' cubic kernel: downwards a = -0.5, widened by
the scale, as in Pillow and MATLAB's `imresize`; upwards a = -0.75, which on our photographs is 0.1
to 0.4 dB above a = -0.5, so that a gain over it is no gift.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import PhysicsError
from zoo.physics.operator import Space

# A widened cubic kernel reaches 2 low-resolution pixels to each side; further in, a patch cut out
# of a picture and then downsampled equals the downsampled picture.
REACH_LOW_PX = 2


def downsample(high: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic downsampling, clamped to [0, 1].

    Args:
        high: [N, C, H, W] float in [0, 1]; H and W multiples of `scale`.

    Returns:
        [N, C, H / scale, W / scale].
    """
    return _shrunk(high, scale).clamp(0.0, 1.0)


def upsample(low: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling of [N, C, h, w] to [N, C, scale * h, scale * w]; may leave [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic")


class BicubicDownsampling(nn.Module):
    """`downsample` without its clamp, and so linear: [N, C, H, W] -> [N, C, H / scale, W / scale].

    Args:
        high_shape: (C, H, W); H and W multiples of `scale`.

    Raises:
        PhysicsError: H or W is no multiple of `scale`.
    """

    is_linear = True

    def __init__(self, high_shape: tuple[int, int, int], scale: int) -> None:
        super().__init__()
        channels, height_px, width_px = high_shape
        if height_px % scale or width_px % scale:
            raise PhysicsError(
                f"high_shape does not divide. Expected height and width that are multiples of "
                f"scale={scale}, got {height_px} x {width_px}. Next, crop the picture."
            )
        self.scale = scale
        self.domain = Space((channels, height_px, width_px))
        self.codomain = Space((channels, height_px // scale, width_px // scale))

    def forward(self, high: Tensor) -> Tensor:
        self.domain.require("high", high)
        return _shrunk(high, self.scale)


def _shrunk(high: Tensor, scale: int) -> Tensor:
    size = (high.shape[-2] // scale, high.shape[-1] // scale)
    return F.interpolate(high, size=size, mode="bicubic", antialias=True)
