"""FC-DenseNet: the presets' published counts, shapes, layouts and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_gradsched.core.published import FC_DENSENET_WEIGHTS
from tests.zoo.presets import build, n_weights, preset
from zoo.net.fc_densenet import FCDenseNet
from zoo.net.flop import forward_flop
from zoo.net.frequency_to_space import FrequencyToSpace

_SMALL = {"layers": [1, 2, 1], "growth": 4}


def _on_meta(name: str) -> FCDenseNet:
    with torch.device("meta"):
        return build(name)


@pytest.fixture(scope="module")
def paper_sample() -> torch.Tensor:
    """1,024 patterns of 512 x 512 pixels, without memory."""
    return torch.empty(1, 1024, 512, 512, device="meta")


def _logged_layers(net: FCDenseNet) -> list[int]:
    """Weights as the authors' log lists them: a transition counts with the layer after it."""
    layers = [n_weights(net.stem) + net.column_bias.numel()]
    before = 0
    stages = [
        *((None, stage.block, stage.transition) for stage in net.down),
        (None, net.middle, None),
        *((stage.transition, stage.block, None) for stage in net.up),
    ]
    for transition_before, block, transition_after in stages:
        before += 0 if transition_before is None else n_weights(transition_before)
        for layer in block.layers:
            layers.append(before + n_weights(layer))
            before = 0
        before = 0 if transition_after is None else n_weights(transition_after)
    return [*layers, n_weights(net.head)]


def test_layers_are_those_of_the_authors_log() -> None:
    logged = [weights for block in FC_DENSENET_WEIGHTS.values() for weights in block]
    net = _on_meta("fc_densenet_23m")
    assert _logged_layers(net) == logged
    assert n_weights(net) == 22_877_568


def test_operations_are_those_of_the_authors_log(paper_sample: torch.Tensor) -> None:
    net = _on_meta("fc_densenet_23m")
    # Three forwards are the 8.00 TFLOP a sample that the log gives.
    assert 3 * forward_flop(net, paper_sample) == 8_002_128_052_224
    # A real step needs no gradient of the data: one product of the first layer less.
    with FlopCounterMode(display=False) as counter:
        net(paper_sample).sum().backward()
    stem = 2 * net.stem.weight.numel() * 512**2
    assert counter.get_total_flops() == 8_002_128_052_224 - stem


def test_ornl_benchmark_counts(paper_sample: torch.Tensor) -> None:
    net = _on_meta("fc_densenet_220m")
    # 220,398,848 weights of convolutions by hand (5 x 5 of growth 256, 1 x 1 transitions) and the
    # stem's 256 biases.
    assert n_weights(net) == 220_399_104
    assert 3 * forward_flop(net, paper_sample) == 51_509_408_563_200


def test_default_is_the_authors_generator() -> None:
    config = preset("fc_densenet")
    assert (config.growth, config.kernel_px, config.layers) == (64, 5, [2, 2, 3, 4, 3, 2, 2])
    net = _on_meta("fc_densenet")
    norms = sum(n_weights(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert n_weights(net) - norms - 64 == _hand_counted_default()


def _hand_counted_default() -> int:
    """Convolutions of growth 64 and 5 x 5, from 1,024 channels; 3 x 3 transitions up."""
    g, k = 64, 25
    layers = [2, 2, 3, 4, 3, 2, 2]
    total, channels, skips = 1024 * g * k, g, []
    for n in layers[:3]:
        total += sum((channels + i * g) * g * k for i in range(n))
        channels += n * g
        skips.append(channels)
        total += channels**2
    total += sum((channels + i * g) * g * k for i in range(layers[3]))
    features = layers[3] * g
    for n in layers[4:]:
        total += features**2 * 9
        channels = features + skips.pop()
        total += sum((channels + i * g) * g * k for i in range(n))
        features = n * g
    return total + channels + features


@pytest.mark.parametrize("upscale", [1, 4])
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("up_kernel_px", [1, 2, 3])
def test_shapes(upscale: int, pooling: str, up_kernel_px: int) -> None:
    net = FCDenseNet(5, 2, upscale=upscale, pooling=pooling, up_kernel_px=up_kernel_px, **_SMALL)
    assert net(torch.randn(3, 5, 8, 12)).shape == (3, 2, 8 * upscale, 12 * upscale)


def test_one_pixel_kernel_leaves_three_of_four_pixels_zero() -> None:
    net = FCDenseNet(5, up_kernel_px=1, **_SMALL)
    up = net.up[0].transition(torch.randn(1, 8, 4, 4))
    assert up.shape == (1, 8, 8, 8)
    assert (up[..., 1::2, :] == 0).all()
    assert (up[..., :, 1::2] == 0).all()
    assert (up[..., ::2, ::2] != 0).any()


def test_a_signal_keeps_its_size() -> None:
    torch.manual_seed(0)
    net = FCDenseNet(64, layers=[2, 3, 4, 3, 2], growth=24, up_kernel_px=2)
    with torch.no_grad():
        assert 0.3 < float(net(torch.randn(4, 64, 16, 16)).std()) < 6.0


@pytest.mark.parametrize("norm", [False, True])
def test_activation_checkpointing_changes_nothing(norm: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = FCDenseNet(
            3, norm_blocks=norm, dropout=0.2, activation_checkpointing=checkpointing, **_SMALL
        )
        net(torch.ones(2, 3, 8, 8)).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_channels_last_changes_the_order_in_memory_only() -> None:
    nets = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        nets.append(FCDenseNet(3, channels_last=channels_last, **_SMALL))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(nets[0](x), nets[1](x))
    assert (
        nets[1].down[0].block.layers[0][1].weight.is_contiguous(memory_format=torch.channels_last)
    )


def test_bridge_lets_every_pixel_see_all_others() -> None:
    torch.manual_seed(0)
    bridge = FrequencyToSpace(3, 16).eval()
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    bridge(x)[0, :, 0, 0].sum().backward()
    assert (x.grad[..., 8:, 8:].abs().sum() > 0).item()


@pytest.mark.parametrize("side_px", [8, 24, 128])
def test_bridge_keeps_the_shape(side_px: int) -> None:
    assert FrequencyToSpace(2, side_px)(torch.randn(2, 2, side_px, side_px)).shape == (
        2,
        2,
        side_px,
        side_px,
    )


def test_net_with_bridges() -> None:
    net = FCDenseNet(3, plane_px=16, bridge=True, **_SMALL)
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 1, 16, 16)
    assert sum(isinstance(m, FrequencyToSpace) for m in net.modules()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [1, 1]}, "odd number of blocks"),
        ({"kernel_px": 4}, "odd kernel_px"),
        ({"pooling": "median"}, "pooling must be"),
        ({"bridge": True}, "set net.plane_px"),
        ({"column_bias": True, "plane_px": 7}, "multiple of 2"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCDenseNet(3, **(_SMALL | options))


@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (1, 4, 8, 8)])
def test_bad_plane_names_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, 3, h, w\] .* multiples of 2"):
        FCDenseNet(3, **_SMALL)(torch.zeros(shape))


def test_counting_leaves_the_net_and_the_random_numbers_alone() -> None:
    net = FCDenseNet(3, norm_blocks=True, dropout=0.5, **_SMALL)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    assert forward_flop(net, torch.randn(1, 3, 8, 8)[:0].expand(0, 3, 8, 8)) == 0
    torch.set_rng_state(state)
    assert forward_flop(net, torch.empty(2, 3, 8, 8)) == 2 * forward_flop(
        net, torch.empty(1, 3, 8, 8)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
