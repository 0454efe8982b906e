"""The linear case in closed form: what linear nets of each kind converge to.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033. Samples are rows here: data Y [N, m], parameters
U [N, n], forward matrix G [m, n]. Gamma and Lambda are the covariances of parameter and data noise;
None is the identity. All in the precision of the data, for which float64 is meant.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import TrainingDataError
from zoo.loss.covariance import cholesky_factor


class Affine(NamedTuple):
    """y [N, m] -> y weight^T + bias, [N, n]; weight [n, m], bias [n]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return y @ self.weight.T + self.bias


class LinearProblem:
    """A linear forward map with its two covariances.

    Args:
        matrix: G, [m, n].
        parameter_covariance: Gamma [n, n]. data_covariance: Lambda [m, m]. None: the identity.

    Raises:
        TrainingDataError: a covariance is singular, or not square.
    """

    def __init__(
        self,
        matrix: Tensor,
        parameter_covariance: Tensor | None = None,
        data_covariance: Tensor | None = None,
    ) -> None:
        n_data, n_parameters = matrix.shape
        self.matrix = matrix
        self.parameter_precision = _precision(parameter_covariance, n_parameters, matrix, "Gamma")
        self.data_precision = _precision(data_covariance, n_data, matrix, "Lambda")

    def tikhonov(self, y: Tensor, weight: float, prior_mean: Tensor) -> Tensor:
        """argmin 1/2 ||y - G u||^2_Lambda^-1 + 1/(2 weight) ||u - u0||^2_Gamma^-1, [N, n].

        Args:
            prior_mean: u0, [n] or [N, n].
        """
        right = weight * y @ self._back_projection.T + prior_mean @ self.parameter_precision
        return torch.linalg.solve(self._hessian(weight), right.T).T

    def naive(self, parameters: Tensor, data: Tensor) -> Affine:
        """nDNN: W = U_c Y_c^+, b = mean(u) - W mean(y)."""
        return regression(data, parameters)

    def model_constrained(
        self, parameters: Tensor, data: Tensor, weight: float, inputs: Tensor | None = None
    ) -> Affine:
        """mcDNN: H W = Gamma^-1 U_c Y_c^+ + weight G^T Lambda^-1 P, H of Tikhonov's equations.

        Args:
            inputs: what the net sees in place of the data [N, m]; P is then Y_c X_c^+.
        """
        inputs = data if inputs is None else inputs
        u_mean, _, x_mean, regressed, _ = _moments(parameters, inputs)
        y_mean, _, _, projection, _ = _moments(data, inputs)
        return self._solve(
            self.parameter_precision @ regressed + weight * self._back_projection @ projection,
            self.parameter_precision @ u_mean + weight * self._back_projection @ y_mean,
            x_mean,
            weight,
        )

    def tnet(self, data: Tensor, weight: float, prior_mean: Tensor) -> Affine:
        """TNet: equals `tikhonov` for every y if the centred data span all of R^m."""
        _, _, y_mean, _, projection = _moments(data, data)
        return self._solve(
            weight * self._back_projection @ projection,
            self.parameter_precision @ prior_mean + weight * self._back_projection @ y_mean,
            y_mean,
            weight,
        )

    def data_driven_prior_mean(
        self, parameters: Tensor, data: Tensor, weight: float, y: Tensor
    ) -> Tensor:
        """The u0 [N, n] with which `tikhonov` at y equals `model_constrained` at y.

        u0 = mean(u) + U_c Y_c^+ (y - mean(y))
             - weight Gamma G^T Lambda^-1 (I - P)(y - mean(y)).
        """
        u_mean, _, y_mean, regression, projection = _moments(parameters, data)
        centred = y - y_mean
        unseen = centred - centred @ projection.T
        correction = torch.linalg.solve(self.parameter_precision, self._back_projection @ unseen.T)
        return u_mean + centred @ regression.T - weight * correction.T

    @property
    def _back_projection(self) -> Tensor:
        return self.matrix.T @ self.data_precision

    def _hessian(self, weight: float) -> Tensor:
        return self.parameter_precision + weight * self._back_projection @ self.matrix

    def _solve(self, linear: Tensor, constant: Tensor, y_mean: Tensor, weight: float) -> Affine:
        hessian = self._hessian(weight)
        matrix = torch.linalg.solve(hessian, linear)
        return Affine(matrix, torch.linalg.solve(hessian, constant) - matrix @ y_mean)


def regression(inputs: Tensor, targets: Tensor) -> Affine:
    """The affine map of least squares from inputs [N, m] to targets [N, n], of least norm."""
    target_mean, _, input_mean, matrix, _ = _moments(targets, inputs)
    return Affine(matrix, target_mean - matrix @ input_mean)


def _precision(covariance: Tensor | None, n: int, like: Tensor, name: str) -> Tensor:
    if covariance is None:
        return torch.eye(n, dtype=like.dtype, device=like.device)
    if covariance.shape != (n, n):
        raise TrainingDataError(
            f"{name} does not fit the operator. Expected [{n}, {n}], got "
            f"{list(covariance.shape)}. Next, pass a covariance of that size."
        )
    return torch.cholesky_inverse(cholesky_factor(covariance, name))


def _moments(parameters: Tensor, data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mean(u), U_c [N, n], mean(y), U_c Y_c^+ [n, m] and P = Y_c Y_c^+ [m, m]."""
    if len(data) == 0 or len(parameters) != len(data):
        raise TrainingDataError(
            "expected as many parameters as data, and at least one of each, got "
            f"{len(parameters)} and {len(data)}. Next, set data.n_train=1 or more."
        )
    u_mean, y_mean = parameters.mean(0), data.mean(0)
    centred = parameters - u_mean
    inverse = torch.linalg.pinv(data - y_mean)
    return u_mean, centred, y_mean, (inverse @ centred).T, (inverse @ (data - y_mean)).T
