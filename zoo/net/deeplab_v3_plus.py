"""DeepLabv3+ with a decoder at full resolution: the larger network of Kurth et al. 2018.

Kurth et al. 2018, arXiv 1810.01993, section V-B2, after Chen et al. 2018, arXiv 1802.02611. What
the text leaves open is as in their code (ClimDeepLearn, `--decoder=deconv1x`), but for one thing:
the encoder's last norm and ReLU, which their graph holds, are used; their pyramid takes the
features before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.net.aspp import ASPP, ConvNormReLU, MakeNorm
from zoo.net.longitude import Conv2d, Up, upsampled
from zoo.net.plane import initialize_he, require_plane
from zoo.net.recompute import recomputed
from zoo.net.resnet_v2 import ResNetV2

Decoder = Literal["deconv1x", "deconv", "bilinear"]
DECODERS = ("deconv1x", "deconv", "bilinear")
ASPP_RATES = (12, 24, 36)


class Half(nn.Module):
    """x / 2 in place of a norm: the authors' code, to stay within fp16's range."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


NORMS: dict[str, MakeNorm] = {"batch": nn.BatchNorm2d, "half": lambda channels: Half()}


class Tail(nn.Module):
    """From a quarter of the resolution to all of it: [N, c, h, w] -> [N, c, 4h, 4w].

    Two transposed convolutions; with `skip_channels` the net's input comes in through two
    convolutions, and two more mix both. `linear`: no ReLU between them, as in the authors' code.
    """

    def __init__(
        self, channels: int, skip_channels: int | None, *, linear: bool, periodic: bool
    ) -> None:
        super().__init__()

        def steps(*layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                *(
                    part
                    for layer in layers
                    for part in ([layer] if linear else [layer, nn.ReLU(inplace=True)])
                )
            )

        conv = partial(Conv2d, periodic=periodic)
        self.up = steps(*(Up(channels, channels, periodic=periodic) for _ in range(2)))
        self.has_skip = skip_channels is not None
        if skip_channels is not None:
            self.skip = steps(
                conv(skip_channels, channels // 4, 3), conv(channels // 4, channels // 2, 3)
            )
            self.mix = steps(
                conv(channels + channels // 2, channels, 3), conv(channels, channels, 3)
            )

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.up(x)
        return self.mix(torch.cat([x, self.skip(image)], dim=1)) if self.has_skip else x


class DeepLabV3Plus(nn.Module):
    """[N, in_channels, h, w] -> logits [N, out_channels, h, w]; h and w multiples of 8.

    ResNet-v2 at output stride 8, atrous pyramid, then at a quarter of the resolution the fine
    features of the encoder join. From there `decoder` says:

    - "deconv1x": transposed convolutions to full resolution, where the input joins as well;
    - "deconv": the same without the input;
    - "bilinear": logits at a quarter of the resolution, interpolated; the original's.

    Args:
        units, width: of the encoder; (3, 4, 6, 3) and 64 is ResNet-50.
        decoder_channels: of pyramid and decoder.
        fine_channels: of the encoder's fine features when they join.
        norm: "batch", or "half", what the authors' runs have in its place.
        linear_tail: no ReLU after the transposed convolutions and those at full resolution, as in
            the authors' code. They are then one linear map, written as many.
        periodic: columns close in longitude, see `zoo.net.longitude`.
        activation_checkpointing: keep only the inputs of bottlenecks, pyramid, and of the decoder's
            two parts.
        channels_last: weights and activations in NHWC order.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 3,
        units: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        decoder: Decoder = "deconv1x",
        decoder_channels: int = 256,
        fine_channels: int = 48,
        norm: Literal["batch", "half"] = "batch",
        linear_tail: bool = False,
        periodic: bool = False,
        activation_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS or norm not in NORMS or len(units) < 3 or min(units) < 1:
            raise ValueError(
                f"expected decoder one of {DECODERS}, norm one of {tuple(NORMS)} and at least three"
                f" blocks of units, got {decoder!r}, {norm!r} and {list(units)}; try "
                "decoder=deconv1x norm=batch units=[3, 4, 6, 3]"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.periodic = periodic
        self.checkpointing = activation_checkpointing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        make_norm = NORMS[norm]
        self.encoder = ResNetV2(
            in_channels,
            units,
            width,
            norm=make_norm,
            periodic=periodic,
            activation_checkpointing=activation_checkpointing,
        )
        conv = partial(ConvNormReLU, norm=make_norm, periodic=periodic)
        c = decoder_channels
        self.aspp = ASPP(
            self.encoder.out_channels,
            c,
            ASPP_RATES,
            norm=make_norm,
            affine_mean=False,
            periodic=periodic,
        )
        self.up = None if decoder == "bilinear" else Up(c, c, periodic=periodic)
        self.fine = conv(width, fine_channels, 1)
        self.join = nn.Sequential(conv(c + fine_channels, c, 3), conv(c, c, 3))
        self.tail = None
        if decoder != "bilinear":
            skip = in_channels if decoder == "deconv1x" else None
            self.tail = Tail(c, skip, linear=linear_tail, periodic=periodic)
        self.head = nn.Conv2d(c, out_channels, 1)
        self.apply(initialize_he)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        require_plane(x, self.in_channels, ResNetV2.output_stride, "net.in_channels")
        image = x.contiguous(memory_format=self.memory_format)
        coarse, fine = self.encoder(image)
        coarse = self._part(self.aspp, coarse)
        x = self._part(self._joined, coarse, fine)
        if self.tail is None:
            return upsampled(self.head(x), 4, self.periodic)
        return self.head(self._part(self.tail, x, image))

    def _joined(self, coarse: Tensor, fine: Tensor) -> Tensor:
        x = upsampled(coarse, 2, self.periodic) if self.up is None else self.up(coarse)
        return self.join(torch.cat([x, self.fine(fine)], dim=1))

    def _part(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        holder = function if isinstance(function, nn.Module) else self
        return recomputed(holder, function, *inputs, enabled=self.checkpointing)
