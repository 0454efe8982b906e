"""What counting electrons or photons does to an ideal pattern."""

from __future__ import annotations

import torch
from torch import Tensor


def poisson_counts(
    pattern: Tensor, electrons_per_pattern: float, generator: torch.Generator | None = None
) -> Tensor:
    """Counts of a detector, [..., H, W]: independent and Poisson with mean dose times pattern.

    Args:
        pattern: the share of the beam in each pixel; sums to 1 over the last two dimensions where
            nothing misses the detector.
        electrons_per_pattern: the beam's dose at one scan position.
    """
    return torch.poisson(electrons_per_pattern * pattern, generator)


def gaussian_counts(
    pattern: Tensor,
    electrons_per_pattern: float,
    readout_electrons: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Counts with shot noise as a Gaussian of the Poisson's variance, plus the detector's own.

    Not whole numbers, and below zero at times: an integrating detector, differentiable where
    `poisson_counts` is not.

    Args:
        readout_electrons: standard deviation of what the detector adds to each pixel.
    """
    mean = electrons_per_pattern * pattern
    # The floor keeps the root's gradient finite where nothing arrives.
    deviation = (mean + readout_electrons**2).clamp_min(1e-12).sqrt()
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return mean + deviation * noise


def poisson_deviance(counts: Tensor, expected: Tensor) -> Tensor:
    """2 [expected - counts + counts log(counts / expected)] of each pixel.

    Twice the negative Poisson log-likelihood above that of a perfect fit: it has the same gradient,
    0 where `expected` equals `counts`, and a mean of about 1 a pixel where only noise is left and
    counts are more than a few (McCullagh and Nelder, Generalized Linear Models, 2.3).

    Args:
        counts: not negative.
        expected: not negative; a floor of 1e-6 keeps counts where nothing is expected finite.
    """
    expected = expected.clamp_min(1e-6)
    log_ratio = torch.special.xlogy(counts, counts) - torch.special.xlogy(counts, expected)
    return 2.0 * (expected - counts + log_ratio)


def amplitude_residual(counts: Tensor, expected: Tensor) -> Tensor:
    """sum |sqrt(counts) - sqrt(expected)| / sum sqrt(counts), a number: the R factor."""
    measured = counts.sqrt()
    return (measured - expected.sqrt()).abs().sum() / measured.sum()
