"""Random periodic signals of a given smoothness, observed through an operator in white noise."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.data.samples import SamplesDataModule
from zoo.physics.smoothing import Smoothing


def prior_variances(n: int, smoothness: float) -> Tensor:
    """[n // 2 + 1] float64: k^(-2s - 1), of the cosine's and the sine's coefficient each.

    The coefficients are those of an orthonormal basis of R^n; k = 0 and k = n / 2 have none.
    """
    variances = torch.arange(n // 2 + 1, dtype=torch.float64).clamp_min(1.0) ** (
        -2.0 * smoothness - 1.0
    )
    variances[0] = variances[n // 2] = 0.0
    return variances


def random_signals(n_samples: int, variances: Tensor, generator: torch.Generator) -> Tensor:
    """[n_samples, n] float64 with independent Gaussian coefficients of these variances."""
    shape = (n_samples, len(variances))
    cosine, sine = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    spectrum = torch.complex(cosine, sine) * (variances / 2.0).sqrt()
    return torch.fft.irfft(spectrum, n=2 * (len(variances) - 1), norm="ortho")


class BesovDataModule(SamplesDataModule):
    """f of Sobolev (Besov 2, 2) smoothness `smoothness`; Y = T f + noise on every grid point.

    Args:
        noise: standard deviation on a grid point, and so of every coefficient.
    """

    def __init__(
        self,
        operator: Smoothing,
        smoothness: float = 1.0,
        noise: float = 1e-3,
        n_train: int = 512,
        n_val: int = 200,
        n_test: int = 500,
        batch_size: int | None = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(operator, noise, n_train, n_val, n_test, batch_size, seed)
        self.variances = prior_variances(operator.domain.shape[0], smoothness)

    def truths(self, split: str, n: int, generator: torch.Generator) -> Tensor:
        return random_signals(n, self.variances, generator)

    def bayes_risk(self) -> float:
        """The least mean of ||f - estimate||^2 of any estimator: sum lambda s / (t^2 lambda + s).

        Over both coefficients of every frequency; lambda their variance, t the multiplier of T and
        s the variance of the noise.
        """
        squared, variance = self.operator.multiplier.double() ** 2, self.noise**2
        remaining = self.variances * variance / (squared * self.variances + variance)
        return 2.0 * float(remaining.sum())
