"""The linear multiscale class in closed form: a short filter on each dyadic band of frequencies.

What the U-nets of del Alamo (arXiv 2108.02744; Electronic Journal of Statistics 17, 2023) come down
to for a periodic operator: analysis in scales, a convolution with few weights in each, synthesis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """Diagonal in Fourier space; each [n // 2 + 1] float64.

    Attributes:
        variances: of a coefficient of f. multiplier: of T. noise_variance: of a coefficient of Y.
    """

    variances: Tensor
    multiplier: Tensor
    noise_variance: float

    def risk(self, response: Tensor) -> float:
        """E ||f - F f||^2 of the estimator with this frequency response, over both coefficients."""
        data = self.multiplier**2 * self.variances + self.noise_variance
        bias = self.variances - 2.0 * response * self.multiplier * self.variances
        # Frequencies that the signal does not have, 0 and n / 2, carry no estimate.
        return 2.0 * float((bias + response**2 * data)[self.variances > 0].sum())

    def bayes_response(self) -> Tensor:
        """Wiener's filter, the best of all: t lambda / (t^2 lambda + s)."""
        data = self.multiplier**2 * self.variances + self.noise_variance
        return self.multiplier * self.variances / data


class DyadicFilters:
    """Estimators whose frequency response in the band 2^j <= k < 2^(j+1) is a short filter's.

    response(k) = sum over t < n_weights of w_jt cos(pi t k / 2^(j+1)): a symmetric filter of
    2 n_weights - 1 taps on the grid of scale j. With one weight it is constant in a band.

    Args:
        n: grid points. n_weights: a band.
    """

    def __init__(self, n: int, n_weights: int = 3) -> None:
        self.n_weights = n_weights
        frequencies = torch.arange(n // 2 + 1, dtype=torch.float64)
        self.bands = [
            torch.arange(2**j, min(2 ** (j + 1), n // 2)) for j in range(int(math.log2(n)) - 1)
        ]
        self._bases = [
            torch.cos(math.pi * frequencies[band, None] / 2.0 ** (j + 1) * torch.arange(n_weights))
            for j, band in enumerate(self.bands)
        ]
        self._n_frequencies = len(frequencies)

    def fit(self, truth: Tensor, data: Tensor) -> Tensor:
        """The response of the empirical risk minimiser from pairs f, Y [N, n], as [n // 2 + 1]."""
        f, y = (torch.fft.rfft(signals, norm="ortho") for signals in (truth, data))
        return self.minimizer((f.conj() * y).real.sum(0), y.abs().square().sum(0))

    def oracle(self, problem: Problem) -> Tensor:
        """The response of the class with the least risk."""
        cross = problem.multiplier * problem.variances
        return self.minimizer(cross, problem.multiplier * cross + problem.noise_variance)

    def minimizer(self, cross: Tensor, power: Tensor) -> Tensor:
        """argmin of sum_k response_k^2 power_k - 2 response_k cross_k over the class.

        Where a band has fewer frequencies than weights, the smallest weights of all minimisers.
        """
        response = torch.zeros(self._n_frequencies, dtype=torch.float64)
        for band, basis in zip(self.bands, self._bases, strict=True):
            roots = power[band].sqrt()
            weights = torch.linalg.lstsq(
                basis * roots[:, None], (cross[band] / roots)[:, None], driver="gelsd"
            ).solution
            response[band] = (basis @ weights)[:, 0]
        return response
