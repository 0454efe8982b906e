"""Counting noise: mean, variance, and the likelihood it stands for."""

from __future__ import annotations

import pytest
import torch

from zoo.physics.noise import (
    amplitude_residual,
    gaussian_counts,
    poisson_counts,
    poisson_deviance,
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pattern() -> torch.Tensor:
    shares = torch.rand(16, 16, generator=_generator())
    return (shares / shares.sum()).expand(2000, 16, 16)


def test_poisson_counts_have_the_dose_and_its_variance(pattern: torch.Tensor) -> None:
    counts = poisson_counts(pattern, 5000.0, _generator())
    assert torch.equal(counts, counts.round())
    mean = 5000.0 * pattern[0]
    torch.testing.assert_close(counts.mean(0), mean, rtol=0.05, atol=0.3)
    assert float((counts.var(0) / mean.clamp_min(1.0))[mean > 1].mean()) == pytest.approx(1, 0.02)


def test_gaussian_counts_have_shot_and_readout_noise(pattern: torch.Tensor) -> None:
    counts = gaussian_counts(pattern, 5000.0, readout_electrons=3.0, generator=_generator())
    mean = 5000.0 * pattern[0]
    torch.testing.assert_close(counts.mean(0), mean, rtol=0.05, atol=0.5)
    assert float((counts.var(0) / (mean + 9.0)).mean()) == pytest.approx(1.0, abs=0.02)


def test_gaussian_counts_can_be_differentiated_where_nothing_arrives() -> None:
    nothing = torch.zeros(1, 4, 4, requires_grad=True)
    gaussian_counts(nothing, 100.0, generator=_generator()).sum().backward()
    assert nothing.grad.isfinite().all()


def test_deviance_is_the_poisson_likelihood_and_least_at_the_counts() -> None:
    counts = torch.tensor([0.0, 1.0, 7.0, 40.0])
    expected = torch.tensor([0.5, 2.0, 6.0, 44.0], requires_grad=True)
    loss = torch.nn.functional.poisson_nll_loss
    by_torch = 2.0 * loss(expected, counts, log_input=False, eps=0.0, reduction="sum")
    difference = torch.autograd.grad(poisson_deviance(counts, expected).sum() - by_torch, expected)
    torch.testing.assert_close(difference[0], torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(poisson_deviance(counts, counts), torch.zeros(4), atol=1e-5, rtol=0)
    assert (poisson_deviance(counts, expected) > 0).all()


def test_deviance_is_one_a_pixel_where_only_noise_is_left() -> None:
    expected = torch.full((200, 200), 50.0)
    counts = torch.poisson(expected, _generator())
    assert float(poisson_deviance(counts, expected).mean()) == pytest.approx(1.0, abs=0.03)


def test_amplitude_residual_is_a_share() -> None:
    counts = torch.tensor([4.0, 16.0])
    assert float(amplitude_residual(counts, counts)) == 0.0
    assert float(amplitude_residual(counts, torch.zeros(2))) == 1.0
    assert float(amplitude_residual(counts, torch.tensor([9.0, 16.0]))) == pytest.approx(1 / 6)
