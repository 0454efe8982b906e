"""Tiramisu for climate: the network of Kurth et al. 2018 for cyclones and atmospheric rivers.

Kurth, Treichler, Romero et al.: Exascale Deep Learning for Climate Analytics, SC 2018, arXiv
1810.01993, section V-B1, after Jégou et al. 2017, arXiv 1611.09326: half the layers, twice the
growth, 5 x 5 in place of 3 x 3. What the text leaves open is as in their code (ClimDeepLearn):
convolution, [norm], ReLU, dropout; a bias everywhere; transitions down are 1 x 1 at stride 2, those
up see the new features of a block only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from zoo.net.fc_densenet import DenseBlock, UpStage
from zoo.net.longitude import Conv2d, Up
from zoo.net.plane import initialize_he, require_plane


class TiramisuLayer(nn.Sequential):
    """Convolution, [norm], ReLU, dropout of single values."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        *,
        stride: int = 1,
        norm: bool,
        dropout: float,
        periodic: bool,
    ) -> None:
        super().__init__(
            Conv2d(in_channels, out_channels, kernel_px, stride=stride, periodic=periodic),
            *([nn.BatchNorm2d(out_channels)] if norm else []),
            nn.ReLU(inplace=True),
            *([nn.Dropout(dropout)] if dropout else []),
        )


class Tiramisu(nn.Module):
    """[N, in_channels, h, w] -> logits [N, out_channels, h, w].

    h and w must be multiples of 2 ** (len(layers) - 1).

    Two things of the authors' code are left out: dropout of the logits themselves, and dropout
    while validating.

    Args:
        layers: of each block from the finest to the coarsest, which is the middle; those on the way
            up mirror all but the last.
        stem_channels: of the first convolution.
        growth: new channels a layer.
        kernel_px: odd side of the convolutions of stem and blocks.
        dropout: rate after each ReLU.
        norm: batch normalization before each ReLU; off in the authors' runs.
        periodic: columns close in longitude, see `zoo.net.longitude`.
        activation_checkpointing: keep only the inputs of blocks and recompute the rest in backward.
        channels_last: weights and activations in NHWC order.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 3,
        layers: Sequence[int] = (2, 2, 2, 4, 5),
        stem_channels: int = 64,
        growth: int = 32,
        kernel_px: int = 5,
        dropout: float = 0.2,
        norm: bool = False,
        periodic: bool = False,
        activation_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if len(layers) < 2 or min(layers) < 1 or kernel_px % 2 == 0:
            raise ValueError(
                "expected at least two blocks with at least one layer each and an odd kernel_px, "
                f"got layers={list(layers)} and kernel_px={kernel_px}; try layers=[2, 2, 3] "
                "kernel_px=3"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        make_layer = partial(TiramisuLayer, norm=norm, dropout=dropout, periodic=periodic)
        make_block = partial(
            DenseBlock,
            growth=growth,
            make_layer=partial(make_layer, kernel_px=kernel_px),
            checkpointing=activation_checkpointing,
        )
        self.stem = make_layer(in_channels, stem_channels, kernel_px)
        self.blocks, self.downs, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, skips = stem_channels, []
        for n_layers in layers[:-1]:
            self.blocks.append(make_block(channels, n_layers))
            channels += n_layers * growth
            skips.append(channels)
            self.downs.append(make_layer(channels, channels, 1, stride=2))
        self.middle = make_block(channels, layers[-1])
        features = layers[-1] * growth
        for n_layers in reversed(layers[:-1]):
            channels = features + skips.pop()
            up = Up(features, features, periodic=periodic)
            self.ups.append(UpStage(up, make_block(channels, n_layers)))
            features = n_layers * growth
        self.head = nn.Conv2d(channels + features, out_channels, 1)
        self.apply(initialize_he)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        divisor = 2 ** len(self.downs)
        require_plane(x, self.in_channels, divisor, "net.in_channels and the length of net.layers")
        x, skips = self.stem(x.contiguous(memory_format=self.memory_format)), []
        for block, down in zip(self.blocks, self.downs, strict=True):
            x = torch.cat([x, block(x)], dim=1)
            skips.append(x)
            x = down(x)
        features = self.middle(x)
        for stage in self.ups:
            x, features = stage(features, skips.pop())
        return self.head(torch.cat([x, features], dim=1))
