"""Parameter tables of known nets: sizes in forward order, with the compute of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from benchmarks.emulation import Layer
from lightning_gradsched.core.published import FC_DENSENET_WEIGHTS


class NetTable(NamedTuple):
    """``source`` says where the sizes and the shares of the compute come from."""

    layers: tuple[Layer, ...]
    dtype: torch.dtype
    source: str

    @property
    def nbytes(self) -> int:
        return sum(sum(layer.numels) for layer in self.layers) * self.dtype.itemsize


def resnet50() -> NetTable:
    """He et al. 2016, ResNet-50 at 224 x 224: 161 parameters, 25,557,032 weights."""
    return NetTable(
        tuple(_resnet50()),
        torch.float32,
        "He et al. 2016, table 1; a layer's compute is weights x output positions at 224 x 224",
    )


def _resnet50() -> Iterator[Layer]:
    yield from _conv(3, 64, kernel=7, positions=112**2)
    n_in, positions = 64, 56**2
    for stage, n_blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(n_blocks):
            # The stride is in the first block's 3 x 3 convolution.
            before = positions
            if stage > 0 and block == 0:
                positions //= 4
            yield from _conv(n_in, width, kernel=1, positions=before)
            yield from _conv(width, width, kernel=3, positions=positions)
            yield from _conv(width, 4 * width, kernel=1, positions=positions)
            if block == 0:
                yield from _conv(n_in, 4 * width, kernel=1, positions=positions)
            n_in = 4 * width
    yield Layer((1000 * n_in, 1000), flop=1000 * n_in)


def _conv(n_in: int, n_out: int, *, kernel: int, positions: int) -> Iterator[Layer]:
    """A convolution, then its batch norm's weight and bias."""
    weights = n_in * n_out * kernel**2
    yield Layer((weights,), flop=weights * positions)
    # Two reads and a write of the image for a few operations: a small part of the time.
    yield Layer((n_out, n_out), flop=0.02 * weights * positions)


def fc_densenet() -> NetTable:
    """Laanait et al. 2019: 22,877,568 weights in fp16."""
    sizes = [weights for block in FC_DENSENET_WEIGHTS.values() for weights in block]
    return NetTable(
        tuple(Layer((n,), flop=n) for n in sizes),
        torch.float16,
        "the layer table of the authors' log; a layer's compute is its share of the weights",
    )


def transformer() -> NetTable:
    """ViT-S/16 (Touvron et al. 2021): 12 layers of width 384 and 6 heads, 22,050,664 weights."""
    return NetTable(
        tuple(_vit_small()),
        torch.float32,
        "Touvron et al. 2021 (DeiT-S); a layer's compute is its weights times 197 tokens",
    )


def _vit_small() -> Iterator[Layer]:
    width, tokens = 384, 197
    yield Layer((width, tokens * width), flop=0.0)  # class token, positions
    yield _linear(3 * 16**2, width)
    for _ in range(12):
        yield Layer((width, width), flop=width * 10)
        yield _linear(width, 3 * width)
        yield _linear(width, width)
        yield Layer((width, width), flop=width * 10)
        yield _linear(width, 4 * width)
        yield _linear(4 * width, width)
    yield Layer((width, width), flop=width * 10)
    yield Layer((width * 1000, 1000), flop=width * 1000 / tokens)


def _linear(n_in: int, n_out: int) -> Layer:
    return Layer((n_in * n_out, n_out), flop=n_in * n_out)


def vgg() -> NetTable:
    """VGG-16 (Simonyan & Zisserman 2015) of a quarter of its width, from 4,096 to 1,024 units.

    9,418,936 weights, 68 % of them in one parameter, which comes early in backward.
    """
    return NetTable(
        tuple(_vgg16(width=16, units=1024)),
        torch.float32,
        "Simonyan & Zisserman 2015, configuration D; a layer's compute is weights x positions",
    )


def _vgg16(width: int, units: int) -> Iterator[Layer]:
    n_in, positions = 3, 224**2
    for doublings, n_layers in ((0, 2), (1, 2), (2, 3), (3, 3), (3, 3)):
        for _ in range(n_layers):
            n_out = width << doublings
            weights = n_in * n_out * 9
            yield Layer((weights, n_out), flop=weights * positions)
            n_in = n_out
        positions //= 4
    n_in *= 49
    for n_out in (units, units, 1000):
        yield _linear(n_in, n_out)
        n_in = n_out


def many_small() -> NetTable:
    """1,000 parameters of 4,096 weights, in 100 layers alike."""
    return NetTable(
        tuple(Layer((4096,) * 10, flop=1.0) for _ in range(100)),
        torch.float32,
        "made up: as many gradients as latency can be asked to suffer from",
    )


TABLES: dict[str, Callable[[], NetTable]] = {
    "resnet50": resnet50,
    "fc_densenet": fc_densenet,
    "transformer": transformer,
    "vgg": vgg,
    "many_small": many_small,
}
