"""Norms weighted by a covariance, and whitening."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import TrainingDataError


def cholesky_factor(covariance: Tensor, name: str) -> Tensor:
    """Lower L with L L^T = `covariance` [n, n].

    Raises:
        TrainingDataError: `covariance`, called `name`, is not square, or singular to rounding.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise TrainingDataError(
            f"{name} is no covariance. Expected a square matrix, got {list(covariance.shape)}. "
            "Next, pass [n, n]."
        )
    factor, info = torch.linalg.cholesky_ex(covariance)
    smallest = 0.0 if int(info) else float(factor.diagonal().min() / factor.diagonal().max())
    if smallest <= len(covariance) * torch.finfo(covariance.dtype).eps:
        raise TrainingDataError(
            f"{name} {list(covariance.shape)} is singular. Expected a positive definite "
            f"covariance, got one whose leading minor {int(info) or len(covariance)} is not. "
            "Next, add a multiple of the identity to it, or randomise the data "
            "(model.randomization=0.1)."
        )
    return factor


class Whitening(nn.Module):
    """z = L^-1 (y - mean) with L L^T = covariance: [N, m] -> [N, m]; the identity until `fit`.

    Linear nets reach the closed forms from whitened data to 1e-6, and hardly to 1e-2 without.
    Mean and factor are buffers: they travel in checkpoints.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("factor", torch.eye(n))

    def fit(self, data: Tensor, noise: Tensor | None = None) -> None:
        """Take mean and covariance from data [N, m]; see `covariance_of`.

        Raises:
            TrainingDataError: no samples, or their covariance is singular.
        """
        mean, covariance = covariance_of(data.double(), noise)
        self.mean.copy_(mean)
        self.factor.copy_(cholesky_factor(covariance, "the covariance of the data"))

    def forward(self, y: Tensor) -> Tensor:
        centred = (y - self.mean).T
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).T


class Unwhitening(nn.Module):
    """u = mean + L v, L L^T the inverse of a precision: [N, n] -> [N, n]; the identity until `fit`.

    With the precision of a least-squares problem's solution, its Hessian, the gradient at v is that
    of a problem whose Hessian is the identity. Mean and factor are buffers: they travel in
    checkpoints.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("factor", torch.eye(n))

    def fit(self, mean: Tensor, precision: Tensor) -> None:
        """Take a mean [n] and a precision [n, n].

        Raises:
            TrainingDataError: the precision is singular.
        """
        lower = cholesky_factor(precision.double(), "the precision of the parameters")
        eye = torch.eye(len(lower)).to(lower)
        self.mean.copy_(mean)
        self.factor.copy_(torch.linalg.solve_triangular(lower, eye, upper=False).T)

    def forward(self, v: Tensor) -> Tensor:
        return self.mean + v @ self.factor.T


def covariance_of(data: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean [m] and covariance [m, m] of data [N, m], and of independent noise on them if given.

    Args:
        noise: covariance of the noise, [m, m]; it is taken in expectation.

    Raises:
        TrainingDataError: there are no samples.
    """
    if len(data) == 0:
        raise TrainingDataError(
            "no samples to take a covariance of. Expected at least 1, got 0. Next, set "
            "data.n_train=1."
        )
    mean = data.mean(0)
    covariance = (data - mean).T @ (data - mean) / len(data)
    if noise is not None:
        covariance = covariance + noise.to(data)
    return mean, covariance


class WeightedSquaredNorm(nn.Module):
    """u [N, n] -> ||u||^2 in the norm of covariance^-1, [N]; without a covariance the plain one.

    Raises:
        TrainingDataError: the covariance is singular.
    """

    def __init__(self, covariance: Tensor | None = None, name: str = "the covariance") -> None:
        super().__init__()
        factor = None if covariance is None else cholesky_factor(covariance, name)
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        u = u.flatten(1)
        if self.factor is not None:
            u = torch.linalg.solve_triangular(self.factor.to(u.dtype), u.T, upper=False).T
        return (u**2).sum(1)
