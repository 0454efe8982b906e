"""Layers on a grid of latitudes (rows) and longitudes (columns) that may close in longitude.

With `periodic` the last column is the neighbour of the first, as on the globe, and rows beyond the
poles are zero; without, both are zero as in any net. Shifting a global map by a multiple of a net's
stride then shifts what the net gives by as much, and nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wrapped(x: Tensor, n_columns: int) -> Tensor:
    """[..., w] -> [..., w + 2 n_columns]: columns of the other edge on both sides, any number.

    In x's own memory format, which `F.pad(mode="circular")` does not keep.

    >>> wrapped(torch.tensor([1, 2, 3]), 4).tolist()
    [3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    """
    if not n_columns:
        return x
    turns = -(-n_columns // x.shape[-1])
    around = torch.cat([x] * turns, dim=-1) if turns > 1 else x
    return torch.cat([around[..., -n_columns:], x, around[..., :n_columns]], dim=-1)


class Conv2d(nn.Conv2d):
    """[N, in, h, w] -> [N, out, h / stride, w / stride], for odd kernels and any dilation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        periodic: bool = False,
    ) -> None:
        reach_px = dilation * (kernel_px // 2)
        super().__init__(
            in_channels,
            out_channels,
            kernel_px,
            stride,
            (reach_px, 0 if periodic else reach_px),
            dilation,
            groups,
            bias,
        )
        self.wrapped_columns = reach_px if periodic else 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(wrapped(x, self.wrapped_columns))


class Up(nn.ConvTranspose2d):
    """[N, in, h, w] -> [N, out, 2h, 2w] by a transposed convolution of 3 x 3 at stride 2."""

    def __init__(
        self, in_channels: int, out_channels: int, *, bias: bool = True, periodic: bool = False
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=bias
        )
        self.periodic = periodic

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if not self.periodic:
            return super().forward(x)
        # One column of input reaches two of output.
        return super().forward(wrapped(x, 1))[..., 2:-2]


class MaxPool2d(nn.MaxPool2d):
    """[N, c, h, w] -> [N, c, h / 2, w / 2]: maxima of 3 x 3 at stride 2."""

    def __init__(self, periodic: bool = False) -> None:
        super().__init__(3, stride=2, padding=(1, 0 if periodic else 1))
        self.wrapped_columns = int(periodic)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(wrapped(x, self.wrapped_columns))


def upsampled(x: Tensor, factor: int, periodic: bool = False) -> Tensor:
    """[N, c, h, w] -> [N, c, factor h, factor w], bilinear between the middles of pixels."""
    y = F.interpolate(wrapped(x, int(periodic)), scale_factor=factor, mode="bilinear")
    return y[..., factor:-factor] if periodic else y
