"""Smooth random signals, blurred: a Gaussian process on [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.data.samples import SamplesDataModule
from zoo.physics.deconvolution import Deconvolution


def gaussian_process_factor(n: int, length: float) -> Tensor:
    """[n, n] float64, R with R R^T = exp(-(t_i - t_j)^2 / (2 length^2)) at n midpoints of [0, 1].

    By eigenvectors: the matrix has eigenvalues below rounding, which Cholesky does not survive.
    """
    points = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    covariance = torch.exp(-0.5 * ((points[:, None] - points) / length) ** 2)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0.0).sqrt()


class DeconvolutionDataModule(SamplesDataModule):
    """u from the Gaussian process of mean 0 and correlation length `length`; y = G u + noise.

    `noise` is relative to the root mean square of the clean data. float64.
    """

    noise_is_relative = True
    dtype = torch.float64

    def __init__(
        self,
        operator: Deconvolution,
        length: float = 0.1,
        noise: float = 0.05,
        n_train: int = 1,
        n_val: int = 100,
        n_test: int = 500,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(operator, noise, n_train, n_val, n_test, batch_size, seed)
        self.factor = gaussian_process_factor(operator.domain.shape[0], length)

    def truths(self, split: str, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, len(self.factor), dtype=torch.float64, generator=generator)
        return normal @ self.factor.T
