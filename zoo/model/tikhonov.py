"""Tikhonov's solution for any differentiable operator: the baseline of the learned inverses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.physics.operator import Operator, jvp


class _Iterate(NamedTuple):
    """u [N, n], the functional there [N], and the damping [N] of the next step."""

    u: Tensor
    value: Tensor
    damping: Tensor


class Tikhonov:
    """y [N, m] -> argmin over u of 1/2 ||u - u0||^2 + weight/2 ||y - G(u)||^2, [N, n].

    Levenberg and Marquardt's iteration, batched over the samples, each with a damping of its own; a
    linear operator needs one step and gets it exactly. For spaces of one dimension.

    Args:
        operator: G.
        weight: lambda, 1 / variance of the noise where the prior is N(u0, I).
        prior_mean: u0, the same for every entry.
        n_iterations: of a nonlinear operator.
    """

    def __init__(
        self,
        operator: Operator,
        weight: float,
        prior_mean: float = 0.0,
        n_iterations: int = 20,
    ) -> None:
        self.operator = operator
        self.weight = weight
        self.prior_mean = prior_mean
        self.n_iterations = 1 if operator.is_linear else n_iterations

    @torch.no_grad()
    def __call__(self, y: Tensor, progress: Callable[[int], None] | None = None) -> Tensor:
        """The solution of each row of y; `progress(i)` is called after the i-th iteration."""
        u = y.new_full((len(y), *self.operator.domain.shape), self.prior_mean)
        damping = 0.0 if self.operator.is_linear else 1e-2
        iterate = _Iterate(u, self._value(u, y), y.new_full((len(y),), damping))
        for i in range(self.n_iterations):
            iterate = self._advanced(iterate, y)
            if progress is not None:
                progress(i + 1)
        return iterate.u

    def _value(self, u: Tensor, y: Tensor) -> Tensor:
        misfit = (y - self.operator(u)).square().sum(1)
        return 0.5 * ((u - self.prior_mean).square().sum(1) + self.weight * misfit)

    def _advanced(self, iterate: _Iterate, y: Tensor) -> _Iterate:
        """One trial step; a sample whose functional does not fall stays, and is damped more."""
        u, value, damping = iterate
        jacobian = batched_jacobian(self.operator, u)
        residual = y - self.operator(u)
        gradient = (u - self.prior_mean) - self.weight * _transposed(jacobian, residual)
        hessian = _hessian(jacobian, self.weight, 1.0 + damping)
        trial = u - torch.linalg.solve(hessian, gradient)
        trial_value = self._value(trial, y)
        better = trial_value <= value
        return _Iterate(
            torch.where(better[:, None], trial, u),
            torch.where(better, trial_value, value),
            torch.where(better, damping / 5.0, damping * 10.0),
        )


def posterior_precision(operator: Operator, u: Tensor, weight: float) -> Tensor:
    """I + weight J^T J at each row of u [N, n], [N, n, n]: Tikhonov's Hessian of a linearised G."""
    return _hessian(batched_jacobian(operator, u), weight, torch.ones(len(u)).to(u))


def predicted_covariance(operator: Operator, u: Tensor, weight: float) -> Tensor:
    """J J^T + I / weight at each row of u [N, n], [N, m, m]: of the data, by a prior N(u, I)."""
    jacobian = batched_jacobian(operator, u)
    noise = torch.eye(jacobian.shape[1]).to(jacobian) / weight
    return jacobian @ jacobian.transpose(1, 2) + noise


def batched_jacobian(operator: Operator, u: Tensor) -> Tensor:
    """dG_i/du_j at each row of u [N, n], as [N, m, n]; one derivative a column."""
    columns = []
    for direction in torch.eye(u.shape[1], dtype=u.dtype, device=u.device):
        columns.append(jvp(operator, u, direction.expand_as(u)))
    return torch.stack(columns, dim=2)


def _hessian(jacobian: Tensor, weight: float, diagonal: Tensor) -> Tensor:
    """diagonal [N] times I + weight J^T J, [N, n, n]."""
    eye = torch.eye(jacobian.shape[2]).to(jacobian)
    return diagonal[:, None, None] * eye + weight * jacobian.transpose(1, 2) @ jacobian


def _transposed(jacobian: Tensor, residual: Tensor) -> Tensor:
    return torch.einsum("nij,ni->nj", jacobian, residual)
