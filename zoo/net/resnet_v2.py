"""ResNet-v2 as an encoder of planes: pre-activated bottlenecks, dilated beyond an output stride.

He, Zhang, Ren, Sun 2016, arXiv 1603.05027, figure 4(e). As TensorFlow's slim has it, which Kurth et
al. 2018 took: a block's stride is on its last unit, and once the output stride is reached a block
that would stride lets the next ones dilate instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.net.aspp import ConvNormReLU, MakeNorm
from zoo.net.longitude import Conv2d, MaxPool2d
from zoo.net.recompute import recomputed

EXPANSION = 4


class Bottleneck(nn.Module):
    """[N, in, h, w] -> ([N, 4 width, h / stride, w / stride], its first features [N, width, h, w]).

    1 x 1, 3 x 3 with stride and dilation, 1 x 1, added to a shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        norm: MakeNorm,
        periodic: bool,
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.norm = norm(in_channels)
        self.shortcut: nn.Module = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.projects = in_channels != out_channels
        if self.projects:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.reduce = ConvNormReLU(in_channels, width, 1, norm=norm, periodic=periodic)
        self.spread = ConvNormReLU(
            width, width, 3, stride=stride, dilation=dilation, norm=norm, periodic=periodic
        )
        self.expand = Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        activated = torch.relu(self.norm(x))
        features = self.reduce(activated)
        shortcut = self.shortcut(activated if self.projects else x)
        return shortcut + self.expand(self.spread(features)), features


class ResNetV2(nn.Module):
    """[N, in_channels, h, w] -> (coarse [N, c, h / 8, w / 8], fine [N, width, h / 4, w / 4]).

    c is 4 width 2 ** (len(units) - 1). The fine features are those of the last unit of the first
    block after its 1 x 1 convolution.

    Args:
        units: bottlenecks of each block; (3, 4, 6, 3) is ResNet-50.
        width: of the first block's bottlenecks; it doubles from block to block.
        activation_checkpointing: keep only the inputs of units.
    """

    output_stride = 8

    def __init__(
        self,
        in_channels: int,
        units: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        *,
        norm: MakeNorm,
        periodic: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = activation_checkpointing
        self.stem = Conv2d(in_channels, width, 7, stride=2, periodic=periodic)
        self.pool = MaxPool2d(periodic)
        self.n_fine = units[0]
        self.units = nn.ModuleList()
        channels, stride, dilation = width, 4, 1
        for block, n_units in enumerate(units):
            for unit in range(n_units):
                # The last block strides nowhere.
                strides = unit == n_units - 1 and block < len(units) - 1
                step = 2 if strides and stride < self.output_stride else 1
                self.units.append(
                    Bottleneck(
                        channels,
                        width << block,
                        stride=step,
                        dilation=dilation,
                        norm=norm,
                        periodic=periodic,
                    )
                )
                channels = EXPANSION * (width << block)
                stride *= step
                dilation *= 2 if strides and step == 1 else 1
        self.norm = norm(channels)
        self.out_channels = channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.stem(x))
        fine = x
        for index, unit in enumerate(self.units):
            x, features = recomputed(unit, unit, x, enabled=self.checkpointing)
            if index == self.n_fine - 1:
                fine = features
        return torch.relu(self.norm(x)), fine
