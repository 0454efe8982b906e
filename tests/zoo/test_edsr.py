"""EDSR: shapes, size, and the bicubic skip."""

from __future__ import annotations

import pytest
import torch

from zoo.net.edsr import EDSR
from zoo.physics.bicubic import downsample, upsample


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("bicubic_skip", [False, True])
def test_output_is_scaled(scale: int, bicubic_skip: bool) -> None:
    net = EDSR(channels=4, blocks=1, scale=scale, bicubic_skip=bicubic_skip)
    assert net(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


def _expected_weights(channels: int, blocks: int, factors: list[int]) -> int:
    def conv(c_in: int, c_out: int) -> int:
        return 9 * c_in * c_out + c_out

    body = 2 * blocks * conv(channels, channels) + conv(channels, channels)
    upsampler = sum(conv(channels, channels * factor**2) for factor in factors)
    return conv(3, channels) + body + upsampler + conv(channels, 3)


@pytest.mark.parametrize(("scale", "factors"), [(2, [2]), (3, [3]), (4, [2, 2])])
def test_number_of_weights(scale: int, factors: list[int]) -> None:
    net = EDSR(channels=24, blocks=4, scale=scale)
    assert sum(p.numel() for p in net.parameters()) == _expected_weights(24, 4, factors)


def test_baseline_of_the_paper_has_1_4_million_weights() -> None:
    # The authors' x2 baseline: 64 channels, 16 blocks; 1.37 M weights.
    assert sum(p.numel() for p in EDSR().parameters()) == 1_369_859


def test_untrained_net_with_bicubic_skip_is_bicubic() -> None:
    low = torch.rand(1, 3, 8, 8)
    assert torch.equal(EDSR(8, 2, scale=3, bicubic_skip=True)(low), upsample(low, 3))


def test_untrained_net_with_bicubic_skip_has_a_gradient() -> None:
    net = EDSR(4, 1, bicubic_skip=True)
    net(torch.rand(1, 3, 8, 8)).square().sum().backward()
    assert net.tail.weight.grad.abs().max() > 0


def test_residual_scale_zero_leaves_the_blocks_out() -> None:
    low = torch.rand(1, 3, 6, 6)
    net = EDSR(4, 2, residual_scale=0.0)
    before = net(low)
    torch.nn.init.normal_(net.blocks[0].second.weight)
    assert torch.equal(net(low), before)


def test_other_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="scale must be 2, 3 or 4, got 5"):
        EDSR(scale=5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_resampling_keeps_constants(scale: int) -> None:
    constant = torch.full((1, 1, 24, 24), 0.25)
    torch.testing.assert_close(downsample(constant, scale), constant[..., ::scale, ::scale])
    torch.testing.assert_close(upsample(downsample(constant, scale), scale), constant)
