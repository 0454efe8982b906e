"""Tiramisu, DeepLabv3+ and DeepCAM: published counts, periodic longitude, options."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import nn

from tests.zoo.presets import build, n_weights
from zoo.net import longitude
from zoo.net.deepcam import DeepCAM
from zoo.net.deeplab_v3_plus import DECODERS, DeepLabV3Plus
from zoo.net.flop import forward_flop
from zoo.net.longitude import Conv2d, MaxPool2d, Up, upsampled, wrapped
from zoo.net.tiramisu import Tiramisu

_SMALL = {
    "tiramisu": {"layers": [1, 2, 1], "stem_channels": 5, "growth": 4, "kernel_px": 3},
    "deeplab_v3_plus": {
        "units": [1, 2, 1],
        "width": 4,
        "decoder_channels": 8,
        "fine_channels": 3,
    },
    "deepcam": {
        "channels": [4, 4, 6, 8, 8, 8, 8, 8],
        "middle_blocks": 1,
        "decoder_channels": 8,
        "fine_channels": 3,
    },
}
_STRIDES = {"tiramisu": 4, "deeplab_v3_plus": 8, "deepcam": 16}
_NETS = sorted(_SMALL)


def _small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build(name, in_channels=2, out_channels=5, **(_SMALL[name] | options))


@pytest.mark.parametrize(
    ("name", "options", "weights", "forward"),
    [
        # Kurth et al. 2018 give 4.188 TFLOP a sample (three forwards), and 3.703 on Piz Daint.
        ("tiramisu", {}, 7_504_835, 1_395_922_305_024),
        ("tiramisu", {"in_channels": 4, "stem_channels": 48}, 7_134_211, 1_234_197_872_640),
        # 13.02; the paper's 14.41 counts what TensorFlow pads for dilated convolutions.
        ("deeplab_v3_plus", {}, 43_718_627, 4_341_407_678_464),
        ("deeplab_v3_plus", {"decoder": "deconv"}, 42_160_419, 1_585_447_960_576),
        ("deeplab_v3_plus", {"decoder": "bilinear"}, 40_390_179, 1_241_717_407_744),
        ("deepcam", {}, 56_454_720, 655_337_666_560),
    ],
)
def test_published_counts(name: str, options: dict, weights: int, forward: int) -> None:
    with torch.device("meta"):
        net = build(name, **options)
        sample = torch.empty(1, net.in_channels, 768, 1152)
    assert n_weights(net) == weights
    assert forward_flop(net, sample) == forward


def test_tflop_a_sample_are_the_papers() -> None:
    assert round(3 * 1_395_922_305_024 / 1e12, 3) == 4.188
    assert round(3 * 1_234_197_872_640 / 1e12, 3) == 3.703
    assert round(3 * 4_341_407_678_464 / 1e12, 2) == 13.02
    assert round(655_337_666_560 / 1e12, 3) == 0.655


@pytest.mark.parametrize("name", _NETS)
def test_any_channels_classes_and_planes(name: str) -> None:
    stride = _STRIDES[name]
    assert _small(name)(torch.randn(2, 2, 2 * stride, 3 * stride)).shape == (
        2,
        5,
        2 * stride,
        3 * stride,
    )


@pytest.mark.parametrize("name", _NETS)
def test_bad_plane_names_what_is_expected(name: str) -> None:
    net, stride = _small(name), _STRIDES[name]
    for shape in ((1, 2, stride + 1, stride), (1, 3, stride, stride)):
        with pytest.raises(ValueError, match=rf"expected \[N, 2, h, w\].*multiples of {stride}"):
            net(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiramisu", {}),
        ("deepcam", {}),
        *(("deeplab_v3_plus", {"decoder": decoder}) for decoder in DECODERS),
    ],
)
def test_periodic_nets_move_with_the_globe(name: str, options: dict) -> None:
    stride = _STRIDES[name]
    x = torch.randn(1, 2, 2 * stride, 6 * stride, generator=torch.Generator().manual_seed(1))
    for periodic in (True, False):
        net = _small(name, periodic=periodic, **options).eval()
        with torch.no_grad():
            moved = net(x.roll(2 * stride, dims=-1)).roll(-2 * stride, dims=-1)
            still = net(x)
        # Batch normalization is that of evaluation: only padding can tell where the map begins.
        assert torch.allclose(moved, still, atol=1e-5 * float(still.abs().max())) == periodic


def test_layers_on_a_ring_are_those_on_a_long_strip() -> None:
    x = torch.randn(2, 3, 8, 12)
    torch.manual_seed(0)
    for layer, factor in (
        (Conv2d(3, 4, 5, periodic=True), 1),
        (Conv2d(3, 4, 3, dilation=2, stride=2, periodic=True), 0.5),
        (Up(3, 4, periodic=True), 2),
        (MaxPool2d(periodic=True), 0.5),
        (lambda x: upsampled(x, 4, periodic=True), 4),
    ):
        # Three times around: the middle turn does not see the strip's ends.
        width = int(12 * factor)
        strip = layer(torch.cat([x, x, x], dim=-1))[..., width : 2 * width]
        torch.testing.assert_close(layer(x), strip)


def test_wrapping_keeps_channels_last() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert wrapped(x, 7).is_contiguous(memory_format=torch.channels_last)
    assert doctest.testmod(longitude).failed == 0


@pytest.mark.parametrize("name", _NETS)
def test_checkpointing_and_memory_format_change_nothing(name: str) -> None:
    # A batch of one, of which batch normalization of the plane's mean would make nothing.
    x = torch.randn(1, 2, 32, 48).double()
    options = {"dropout": 0.0} if name == "tiramisu" else {}
    outcomes = []
    for recompute in (False, True):
        net = _small(
            name, activation_checkpointing=recompute, channels_last=recompute, **options
        ).double()
        net(x).square().mean().backward()
        statistics = [tensor for key, tensor in net.named_buffers() if "num_batches" not in key]
        outcomes.append([*(p.grad for p in net.parameters()), *statistics])
    assert all(gradient is not None for gradient in outcomes[0])
    torch.testing.assert_close(outcomes[0], outcomes[1])


def test_options_of_deeplab_and_tiramisu() -> None:
    x = torch.randn(2, 2, 16, 24)
    linear = _small("deeplab_v3_plus", linear_tail=True, norm="half")
    assert not any(isinstance(part, nn.BatchNorm2d) for part in linear.modules())
    assert not any(isinstance(part, nn.ReLU) for part in linear.tail.modules())
    assert linear(x).shape == (2, 5, 16, 24)
    with pytest.raises(ValueError, match="decoder one of"):
        DeepLabV3Plus(decoder="nearest")
    with pytest.raises(ValueError, match="at least two blocks"):
        Tiramisu(layers=[2])
    with pytest.raises(ValueError, match="eight channels"):
        DeepCAM(channels=[1, 2])


@pytest.mark.parametrize("name", ["tiramisu_tiny", "deeplab_v3_plus_tiny", "tiramisu"])
def test_a_signal_keeps_its_size(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, dropout=0.0) if name == "tiramisu" else build(name)
    with torch.no_grad():
        assert 0.1 < float(net(torch.randn(2, 16, 48, 64)).std()) < 10.0
