"""The multiscale class in closed form, the U-net built on it, and the signals."""

from __future__ import annotations

import pytest
import torch

from zoo.data.besov import BesovDataModule, prior_variances, random_signals
from zoo.model.dyadic_filters import DyadicFilters, Problem
from zoo.net.multiscale_unet import MultiscaleUNet, wavelet_filters
from zoo.physics.smoothing import Smoothing, smoothing_multiplier


@pytest.mark.parametrize("moments", [1, 2, 4])
@pytest.mark.parametrize(("dims", "shape"), [(1, (64,)), (2, (16, 32))])
def test_untrained_net_is_the_identity(moments: int, dims: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    net = MultiscaleUNet(levels=4, taps=3, dims=dims, moments=moments, channels=2)
    torch.testing.assert_close(net(x), x, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("moments", [1, 2, 4])
def test_wavelets_are_orthonormal(moments: int) -> None:
    low, high = wavelet_filters(moments)[:, 0].double()
    for shift in range(0, len(low), 2):
        expected = 1.0 if shift == 0 else 0.0
        tail = slice(shift, None)
        head = slice(0, len(low) - shift)
        assert float(low[tail] @ low[head]) == pytest.approx(expected, abs=1e-6)
        assert float(high[tail] @ high[head]) == pytest.approx(expected, abs=1e-6)
        assert float(low[tail] @ high[head]) == pytest.approx(0.0, abs=1e-6)
    assert float(high.sum()) == pytest.approx(0.0, abs=1e-6)


def test_only_learned_wavelets_are_trained() -> None:
    fixed, learned = MultiscaleUNet(2), MultiscaleUNet(2, learned=True)
    assert not any(p.requires_grad for p in fixed.analysis)
    assert all(p.requires_grad for p in [*learned.analysis, *learned.synthesis])


def test_net_commutes_with_shifts_of_the_coarsest_grid() -> None:
    net, x = MultiscaleUNet(3, channels=2), torch.randn(1, 32)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.testing.assert_close(net(x.roll(8, 1)), net(x).roll(8, 1), rtol=1e-4, atol=1e-5)


def test_a_side_that_cannot_be_halved_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[9\] cannot be halved.*net.levels"):
        MultiscaleUNet(2)(torch.randn(1, 18))


@pytest.mark.parametrize("options", [{"taps": 4}, {"dims": 3}, {"moments": 3}])
def test_bad_options_are_named(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        MultiscaleUNet(**options)


def test_signals_have_the_stated_variances() -> None:
    variances = prior_variances(16, 1.0)
    signals = random_signals(20_000, variances, torch.Generator().manual_seed(0))
    power = torch.fft.rfft(signals, norm="ortho").abs().square().mean(0)
    torch.testing.assert_close(power, variances, rtol=0.05, atol=1e-12)


def _problem(noise: float) -> Problem:
    return Problem(prior_variances(64, 1.0), smoothing_multiplier(64, 1.0), noise**2)


def test_bayes_risk_is_that_of_wieners_filter() -> None:
    data = BesovDataModule(Smoothing(64), noise=0.01)
    problem = _problem(0.01)
    assert data.bayes_risk() == pytest.approx(problem.risk(problem.bayes_response()))


def test_risk_is_the_mean_squared_error() -> None:
    problem = _problem(0.01)
    response = DyadicFilters(64).oracle(problem)
    generator = torch.Generator().manual_seed(0)
    truth = random_signals(20_000, problem.variances, generator)
    noise = 0.01 * torch.randn(truth.shape, dtype=truth.dtype, generator=generator)
    # Neither the mean nor the highest frequency is of the signal.
    spectrum = torch.fft.rfft(truth) * problem.multiplier + torch.fft.rfft(noise)
    estimate = torch.fft.irfft(spectrum * response, n=64)
    measured = float((estimate - truth).square().sum(1).mean())
    assert measured == pytest.approx(problem.risk(response), rel=0.02)


def test_fit_approaches_the_oracle() -> None:
    problem, filters = _problem(0.01), DyadicFilters(64)
    generator = torch.Generator().manual_seed(0)
    excess = []
    for n_samples in (20, 2000):
        truth = random_signals(n_samples, problem.variances, generator)
        clean = torch.fft.irfft(torch.fft.rfft(truth) * problem.multiplier, n=64)
        data = clean + 0.01 * torch.randn(truth.shape, dtype=truth.dtype, generator=generator)
        excess.append(
            problem.risk(filters.fit(truth, data)) - problem.risk(filters.oracle(problem))
        )
    assert 0.0 <= excess[1] < 0.1 * excess[0]


def test_odd_grids_are_named() -> None:
    with pytest.raises(ValueError, match="n must be even"):
        Smoothing(63)
