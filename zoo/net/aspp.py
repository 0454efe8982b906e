"""Atrous spatial pyramid pooling: one plane seen at several dilations and as a whole.

Chen, Papandreou, Schroff, Adam 2017, arXiv 1706.05587, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.net.longitude import Conv2d

MakeNorm = Callable[[int], nn.Module]


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, norm, ReLU: [N, in, h, w] -> [N, out, h / stride, w / stride]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: MakeNorm,
        periodic: bool,
    ) -> None:
        super().__init__(
            Conv2d(
                in_channels,
                out_channels,
                kernel_px,
                stride=stride,
                dilation=dilation,
                bias=False,
                periodic=periodic,
            ),
            norm(out_channels),
            nn.ReLU(inplace=True),
        )


class Affine(nn.Module):
    """x scaled and shifted by channel, [N, c, h, w]: in place of a norm over a single value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class ASPP(nn.Module):
    """[N, in, h, w] -> [N, out, h, w].

    1 x 1, three of 3 x 3 at `rates`, and the mean over the plane, concatenated and mixed. The mean
    has one value a channel and sample, and batch normalization of a batch of one would make nothing
    of it: its convolution has a bias instead, or `affine_mean`, an `Affine` after it, as in
    DeepCAM.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        norm: MakeNorm,
        affine_mean: bool,
        periodic: bool,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ConvNormReLU(
                in_channels,
                out_channels,
                1 if rate == 1 else 3,
                dilation=rate,
                norm=norm,
                periodic=periodic,
            )
            for rate in (1, *rates)
        )
        self.plane_mean = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=not affine_mean),
            *([Affine(out_channels)] if affine_mean else []),
            nn.ReLU(inplace=True),
        )
        n_parts = len(self.branches) + 1
        self.mix = ConvNormReLU(
            n_parts * out_channels, out_channels, 1, norm=norm, periodic=periodic
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.plane_mean(x.mean(dim=(2, 3), keepdim=True))
        parts = [branch(x) for branch in self.branches]
        return self.mix(torch.cat([*parts, mean.expand_as(parts[0])], dim=1))
