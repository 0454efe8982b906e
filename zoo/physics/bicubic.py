"""Bicubic resampling: the degradation of super-resolution, and its plain inverse.

Both are `torch.nn.functional.interpolate` with Keys' cubic kernel: downwards a = -0.5, widened by
the scale, as in Pillow and MATLAB's `imresize`; upwards a = -0.75, which on our photographs is 0.1
to 0.4 dB above a = -0.5, so that a gain over it is no gift.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

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
    size = (high.shape[-2] // scale, high.shape[-1] // scale)
    return F.interpolate(high, size=size, mode="bicubic", antialias=True).clamp(0.0, 1.0)


def upsample(low: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling of [N, C, h, w] to [N, C, scale * h, scale * w]; may leave [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic")
