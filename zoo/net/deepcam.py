"""DeepCAM's network: an aligned Xception, atrous pyramid and transposed convolutions.

The reference of MLPerf HPC (mlcommons/hpc, `deepcam`), descendant of Kurth et al. 2018; Xception:
Chollet 2017, arXiv 1610.02357, aligned as in Chen et al. 2018, arXiv 1802.02611.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo.net.aspp import ASPP, ConvNormReLU
from zoo.net.longitude import Conv2d, Up
from zoo.net.plane import initialize_he, require_plane
from zoo.net.recompute import recomputed

OUTPUT_STRIDE = 16
ASPP_RATES = (6, 12, 18)
# Stem (two), entry flow (three; the last goes through the middle flow), exit flow (three).
CHANNELS = (32, 64, 128, 256, 728, 1024, 1536, 2048)


class SeparableConv2d(nn.Sequential):
    """3 x 3 channel by channel, then 1 x 1, neither with a bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        periodic: bool,
    ) -> None:
        super().__init__(
            Conv2d(
                in_channels,
                in_channels,
                3,
                stride=stride,
                dilation=dilation,
                groups=in_channels,
                bias=False,
                periodic=periodic,
            ),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )


class XceptionBlock(nn.Module):
    """Separable convolutions beside a shortcut: [N, in, h, w] -> [N, out, h / stride, w / stride].

    Args:
        widths: channels from the input through each convolution to the output.
        last: one more convolution, with the stride, and no norm after it.
    """

    def __init__(
        self, widths: Sequence[int], *, stride: int = 1, last: bool = False, periodic: bool
    ) -> None:
        super().__init__()
        in_channels, out_channels = widths[0], widths[-1]
        separable = partial(SeparableConv2d, periodic=periodic)
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [separable(before, after), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        parts.pop()
        if last:
            parts.append(separable(out_channels, out_channels, stride=stride))
        self.residual = nn.Sequential(*parts)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class DeepCAM(nn.Module):
    """[N, in_channels, h, w] -> logits [N, out_channels, h, w]; h and w multiples of 16.

    Args:
        channels: stem (two), entry flow (three), exit flow (three).
        middle_blocks: residual blocks of three convolutions between entry and exit flow.
        decoder_channels: of pyramid and decoder.
        fine_channels: of the features at a quarter of the resolution when they join the decoder.
        periodic: columns close in longitude, see `zoo.net.longitude`.
        activation_checkpointing: keep only the inputs of the blocks and of the decoder's parts.
        channels_last: weights and activations in NHWC order.

    Raises:
        ValueError: there are not eight `channels`.
    """

    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 3,
        channels: Sequence[int] = CHANNELS,
        middle_blocks: int = 16,
        decoder_channels: int = 256,
        fine_channels: int = 48,
        periodic: bool = False,
        activation_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(CHANNELS):
            raise ValueError(
                f"expected eight channels (two of the stem, three of the entry flow, three of the "
                f"exit flow), got {list(channels)}; try channels={list(CHANNELS)}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.checkpointing = activation_checkpointing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        a, b, c, d, e, f, g, h = channels
        block = partial(XceptionBlock, periodic=periodic)
        conv = partial(ConvNormReLU, norm=nn.BatchNorm2d, periodic=periodic)
        self.stem = nn.Sequential(conv(in_channels, a, 3, stride=2), conv(a, b, 3))
        self.entry = block((b, c, c), stride=2, last=True)
        self.blocks = nn.ModuleList(
            [
                block((c, d, d), stride=2, last=True),
                block((d, e, e), stride=2, last=True),
                *(block((e, e, e, e)) for _ in range(middle_blocks)),
                block((e, e, f), last=True),
            ]
        )
        self.exit = nn.Sequential(
            *(
                part
                for before, after in ((f, g), (g, g), (g, h))
                for part in (
                    SeparableConv2d(before, after, dilation=2, periodic=periodic),
                    nn.BatchNorm2d(after),
                    nn.ReLU(inplace=True),
                )
            )
        )
        width = decoder_channels
        self.aspp = ASPP(
            h, width, ASPP_RATES, norm=nn.BatchNorm2d, affine_mean=True, periodic=periodic
        )
        self.fine = conv(c, fine_channels, 1)
        self.ups = nn.Sequential(*_up(width, periodic), *_up(width, periodic))
        self.join = nn.Sequential(
            conv(width + fine_channels, width, 3),
            conv(width, width, 3),
            nn.Conv2d(width, width, 1),
            *_up(width, periodic),
        )
        self.head = Up(width, out_channels, bias=False, periodic=periodic)
        self.apply(initialize_he)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        require_plane(x, self.in_channels, OUTPUT_STRIDE, "net.in_channels")
        x = self._part(self.stem, x.contiguous(memory_format=self.memory_format))
        fine = x = torch.relu(self._part(self.entry, x))
        for index, block in enumerate(self.blocks):
            x = self._part(block, x)
            # The last block's sum goes on as it is.
            x = torch.relu(x) if index < len(self.blocks) - 1 else x
        x = self._part(self.aspp, self._part(self.exit, x))
        return self.head(self._part(self._joined, x, fine))

    def _joined(self, x: Tensor, fine: Tensor) -> Tensor:
        return self.join(torch.cat([self.ups(x), self.fine(fine)], dim=1))

    def _part(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        holder = function if isinstance(function, nn.Module) else self
        return recomputed(holder, function, *inputs, enabled=self.checkpointing)


def _up(channels: int, periodic: bool) -> list[nn.Module]:
    return [
        Up(channels, channels, bias=False, periodic=periodic),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]
