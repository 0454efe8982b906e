"""FC-DenseNet: a U-shaped network of densely connected blocks, and its presets for diffraction.

Jégou, Drozdzal, Vazquez, Romero, Bengio: The One Hundred Layers Tiramisu, CVPR Workshops 2017,
arXiv 1611.09326: figure 1 (network), figure 2 (block), table 1 (layers). Laanait et al. 2019,
arXiv 1909.11150, trained it on electron diffraction; details that the paper leaves open are those
of its authors' code (stemdl, MIT): pre-activated layers without bias, transitions that keep the
number of channels, transitions up fed with the new features of a block only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.net.frequency_to_space import FrequencyToSpace
from zoo.net.plane import initialize_he, require_plane
from zoo.net.recompute import recomputed


class DenseLayer(nn.Sequential):
    """[norm], ReLU, convolution without bias, dropout of whole channels."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_px: int, norm: bool, dropout: float
    ) -> None:
        layers: list[nn.Module] = [nn.BatchNorm2d(in_channels)] if norm else []
        layers += [
            # Out of place: what comes in is concatenated later on.
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel_px, padding=kernel_px // 2, bias=False),
        ]
        super().__init__(*layers, *([nn.Dropout2d(dropout)] if dropout else []))


class DenseBlock(nn.Module):
    """[N, c, h, w] -> [N, n_layers * growth, h, w]: the new features of all its layers.

    Each layer sees the block's input and the features of all layers before it. The block's whole
    output is its input and these, concatenated by whoever needs it.
    """

    def __init__(
        self,
        in_channels: int,
        n_layers: int,
        *,
        growth: int,
        make_layer: Callable[[int, int], nn.Module],
        checkpointing: bool,
    ) -> None:
        """`make_layer(in_channels, out_channels)` gives a layer that keeps h and w."""
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(
            make_layer(in_channels + index * growth, growth) for index in range(n_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self, self._features, x, enabled=self.checkpointing)

    def _features(self, x: Tensor) -> Tensor:
        features: list[Tensor] = []
        for layer in self.layers:
            features.append(layer(torch.cat([x, *features], dim=1)))
        return torch.cat(features, dim=1)


class Up(nn.ConvTranspose2d):
    """[N, c, h, w] -> [N, c, 2h, 2w]. With a kernel of 1 pixel three of four pixels are zero."""

    def __init__(self, channels: int, kernel_px: int) -> None:
        super().__init__(
            channels,
            channels,
            kernel_px,
            stride=2,
            padding=(kernel_px - 1) // 2,
            output_padding=kernel_px % 2,
            bias=False,
        )


class DownStage(nn.Module):
    """[N, c, h, w] -> ([N, c', h / 2, w / 2], the skip connection [N, c', h, w])."""

    def __init__(
        self, block: DenseBlock, transition: DenseLayer, bridge: nn.Module, pooling: str
    ) -> None:
        super().__init__()
        self.block, self.transition, self.bridge = block, transition, bridge
        self.pool = nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([x, self.block(x)], dim=1)
        return self.pool(self.transition(x)), self.bridge(x)


class UpStage(nn.Module):
    """New features of the stage below and a skip connection -> the block's input, its features."""

    def __init__(self, transition: nn.Module, block: DenseBlock) -> None:
        super().__init__()
        self.transition, self.block = transition, block

    def forward(self, features: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.transition(features), skip], dim=1)
        return x, self.block(x)


class FCDenseNet(nn.Module):
    """[N, in_channels, h, w] -> [N, out_channels, s h, s w], s = `upscale`.

    h and w must be multiples of 2 ** n_pools, where n_pools is half the number of blocks but the
    middle one.

    Args:
        layers: layers of each block, from the first down through the middle up to the last; an odd
            number of blocks.
        growth: new channels a layer; the stem has as many.
        kernel_px: odd side of the convolutions of stem and blocks.
        pooling: "avg" or "max", 2 x 2.
        up_kernel_px: side of the transposed convolutions: 1 in the authors' networks, 3 in their
            generator, 2 for one that leaves no pixel out.
        upscale: factor between the sides of output and input, by sub-pixel convolution (Shi et al.
            2016, arXiv 1609.05158), where the output is finer than the plane that is convolved.
        dropout: rate in the dense layers and transitions down, of whole channels.
        norm_blocks, norm_transitions: batch normalization in the dense layers, and before the
            transitions down.
        plane_px: h = w, which only `bridge` and `column_bias` need to know.
        bridge: `FrequencyToSpace` on all skip connections and on the middle block's features.
        column_bias: the stem's bias is one a column of the image instead of one a channel. So it is
            in the authors' code, which takes the image's last axis for that of the channels; it
            makes their count of weights come out.
        activation_checkpointing: keep only the inputs of blocks and recompute the rest in backward:
            less memory for about a third more compute.
        channels_last: weights and activations in NHWC order.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        layers: Sequence[int] = (2, 2, 3, 4, 3, 2, 2),
        growth: int = 64,
        kernel_px: int = 3,
        pooling: Literal["avg", "max"] = "max",
        up_kernel_px: int = 3,
        upscale: int = 1,
        dropout: float = 0.0,
        norm_blocks: bool = False,
        norm_transitions: bool = False,
        plane_px: int | None = None,
        bridge: bool = False,
        column_bias: bool = False,
        activation_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        _check(layers, kernel_px, pooling, up_kernel_px, plane_px, bridge or column_bias)
        self.in_channels = in_channels
        self.upscale = upscale
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.stem = nn.Conv2d(
            in_channels, growth, kernel_px, padding=kernel_px // 2, bias=not column_bias
        )
        self.column_bias = nn.Parameter(torch.zeros(plane_px)) if column_bias else None

        make_block = partial(
            DenseBlock,
            growth=growth,
            make_layer=partial(DenseLayer, kernel_px=kernel_px, norm=norm_blocks, dropout=dropout),
            checkpointing=activation_checkpointing,
        )

        def make_bridge(channels: int, depth: int) -> nn.Module:
            return FrequencyToSpace(channels, plane_px >> depth) if bridge else nn.Identity()

        n_pools = len(layers) // 2
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, skips = growth, []
        for depth, n_layers in enumerate(layers[:n_pools]):
            block = make_block(channels, n_layers)
            channels += n_layers * growth
            skips.append(channels)
            transition = DenseLayer(channels, channels, 1, norm_transitions, dropout)
            self.down.append(DownStage(block, transition, make_bridge(channels, depth), pooling))
        self.middle = make_block(channels, layers[n_pools])
        features = layers[n_pools] * growth
        self.bridge = make_bridge(features, n_pools)
        for n_layers in layers[n_pools + 1 :]:
            channels = features + skips.pop()
            self.up.append(UpStage(Up(features, up_kernel_px), make_block(channels, n_layers)))
            features = n_layers * growth
        self.head = nn.Conv2d(channels + features, out_channels * upscale**2, 1, bias=False)
        self.apply(initialize_he)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        require_plane(
            x, self.in_channels, 2 ** len(self.down), "net.in_channels and the length of net.layers"
        )
        x = self.stem(x.contiguous(memory_format=self.memory_format))
        if self.column_bias is not None:
            x = x + self.column_bias
        x, skips = torch.relu(x), []
        for stage in self.down:
            x, skip = stage(x)
            skips.append(skip)
        features = self.bridge(self.middle(x))
        for stage in self.up:
            x, features = stage(features, skips.pop())
        return F.pixel_shuffle(self.head(torch.cat([x, features], dim=1)), self.upscale)


def _check(
    layers: Sequence[int],
    kernel_px: int,
    pooling: str,
    up_kernel_px: int,
    plane_px: int | None,
    needs_plane: bool,
) -> None:
    if len(layers) % 2 == 0 or min(layers) < 1:
        raise ValueError(
            "expected an odd number of blocks with at least one layer each, down, middle, up; got "
            f"layers={list(layers)}; try layers=[2, 3, 2]"
        )
    if kernel_px % 2 == 0 or up_kernel_px not in (1, 2, 3):
        raise ValueError(
            f"expected an odd kernel_px and up_kernel_px of 1, 2 or 3, got {kernel_px} and "
            f"{up_kernel_px}; try kernel_px=3 up_kernel_px=2"
        )
    if pooling not in ("avg", "max"):
        raise ValueError(f"pooling must be 'avg' or 'max', got {pooling!r}")
    if needs_plane and (plane_px is None or plane_px % 2 ** (len(layers) // 2)):
        raise ValueError(
            f"bridge and column_bias need plane_px, a multiple of {2 ** (len(layers) // 2)}; got "
            f"{plane_px}; set net.plane_px to the side of the images"
        )
