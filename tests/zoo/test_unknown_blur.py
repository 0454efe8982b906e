"""Photograph patches, their blur, and the two U-nets and Wiener's filter that undo it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.claim import unknown_blur
from zoo.data.patches import PatchesDataModule
from zoo.metric.sample_errors import relative_error
from zoo.net.residual_unet import ResidualUNet
from zoo.physics.blur import Blur
from zoo.solver.wiener import Wiener


def test_blur_is_the_circular_convolution_with_a_gaussian() -> None:
    point = torch.zeros(1, 32, 32, dtype=torch.float64)
    point[0, 0, 0] = 1.0
    x = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    one = torch.exp(-0.5 * (x / 2.0) ** 2)
    one = one / one.sum()
    got = Blur(32, 2.0)(point)[0]
    torch.testing.assert_close(got, one[:, None] * one, rtol=0.0, atol=1e-6)
    with pytest.raises(ValueError, match="width_px must be positive"):
        Blur(32, 0.0)


def test_patches_are_those_of_seed_and_split(photographs_path: Path) -> None:
    def data(seed: int) -> PatchesDataModule:
        sizes = {"n_train": 5, "n_val": 4, "n_test": 3}
        return PatchesDataModule(Blur(16), str(photographs_path), seed=seed, **sizes)

    first, other = data(0), data(1)
    train, test = first.samples("train"), first.samples("test")
    assert train.truth.shape == (5, 16, 16)
    assert 0.0 <= float(train.truth.min()) < float(train.truth.max()) <= 1.0
    assert torch.equal(train.data, data(0).samples("train").data)
    assert not torch.equal(train.truth, other.samples("train").truth)
    assert torch.equal(test.truth, other.samples("test").truth)
    noise = test.data - first.operator(test.truth)
    assert float(noise.std()) == pytest.approx(first.noise, rel=0.1)


def test_wiener_is_the_best_of_linear_filters() -> None:
    """Of those that treat all places alike: nudged either way at any frequency it gets worse."""
    generator, operator = torch.Generator().manual_seed(0), Blur(8, 1.0)
    truth = operator(torch.randn(4000, 8, 8, generator=generator)) + 0.5
    data = operator(truth) + 0.1 * torch.randn(4000, 8, 8, generator=generator)
    filtered = Wiener(operator, truth, 0.1)
    best = float((filtered(data) - truth).square().mean())
    assert best < 0.8 * float((data - truth).square().mean())
    response = filtered.response
    for factor in (0.8, 1.2):
        for place in ((0, 1), (1, 1), (2, 0)):
            filtered.response = response.clone()
            filtered.response[place] *= factor
            assert float((filtered(data) - truth).square().mean()) > best


def test_a_black_patch_has_no_relative_error_and_spoils_no_mean() -> None:
    truth = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    errors = relative_error(0.5 * torch.ones(2, 4, 4), truth)
    assert errors.isnan().tolist() == [True, False]
    assert float(errors.nanmean()) == 0.5


def test_the_plain_unet_starts_as_the_identity() -> None:
    x = torch.randn(2, 20, 12)
    torch.testing.assert_close(ResidualUNet(4, 2)(x), x, rtol=0, atol=0)


def test_runs_become_checks_a_table_and_a_picture() -> None:
    runs = [
        {"net": net, "n_train": n, "seed": seed, "psnr": 20.0 + gain + n / 8 + seed}
        for net, gain in (("multiscale", 1.0), ("plain", 0.0))
        for n in (8, 16)
        for seed in (0, 1)
    ]
    weights = {"multiscale": 10, "plain": 1000}
    measured = {"runs": runs, "weights": weights, "wiener": 24.0, "measurement": 19.0}
    few, many = unknown_blur.checks(measured)
    assert (few.measured, few.holds) == ("1", True)
    assert (many.measured, many.holds) == ("-0.5", False)
    rows = unknown_blur.table(measured)
    assert rows.rows[1][1:] == ["1,000", "21.50 ± 0.71", "22.50 ± 0.71"]
    assert unknown_blur.plot(measured).axes
