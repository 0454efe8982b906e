"""Losses of model-constrained learning, and the randomisation of data.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033 (nDNN, mcDNN); Nguyen and Bui-Thanh, TNet, SIAM J. Sci.
Comput., doi 10.1137/22M1526708. Psi is the network, G the forward operator, u the parameter, y the
data; ||.||_Gamma^-1 is `parameter_norm`, ||.||_Lambda^-1 is `data_norm`, both squared norms
[N, ...] -> [N]. The sums over samples of the papers are means here, so that a batch's size does not
change the balance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.errors import PhysicsError, TrainingDataError

SquaredNorm = Callable[[Tensor], Tensor]
# What the noise of the randomisation is relative to.
RELATIVE_TO = ("entry", "sample")


def randomization_std(y: Tensor, strength: float, relative_to: str = "entry") -> Tensor:
    """Standard deviations of the noise that randomises y [N, ...], [N, ...].

    Relative to an "entry", as in the papers, strength |y|: an entry near zero is hardly randomised,
    and a net learns nothing of how to answer to it. Relative to a "sample", strength times the root
    mean square of the sample's entries.
    """
    if relative_to == "entry":
        return strength * y.abs()
    size = y.flatten(1).square().mean(1).sqrt()
    return strength * size.view(-1, *[1] * (y.ndim - 1)).expand_as(y)


def randomization_covariance(y: Tensor, strength: float, relative_to: str = "entry") -> Tensor:
    """Covariance [m, m] of that noise, in expectation over the rows of y [N, m] too."""
    return torch.diag(randomization_std(y, strength, relative_to).square().mean(0))


def randomized(
    y: Tensor,
    strength: float,
    generator: torch.Generator | None = None,
    relative_to: str = "entry",
) -> Tensor:
    """y + eps, eps ~ N(0, `randomization_std`^2), drawn anew for every entry of y [N, ...]."""
    noise = torch.randn(y.shape, dtype=y.dtype, generator=generator).to(y.device)
    return y + randomization_std(y, strength, relative_to) * noise


def naive_loss(estimate: Tensor, truth: Tensor, parameter_norm: SquaredNorm) -> Tensor:
    """nDNN: 1/2 ||u - Psi(y)||^2."""
    return 0.5 * parameter_norm(truth - estimate).mean()


def data_misfit(
    estimate: Tensor, y: Tensor, operator: Callable[[Tensor], Tensor], data_norm: SquaredNorm
) -> Tensor:
    """1/2 ||y - G(Psi(y))||^2 in the norm of Lambda^-1.

    Raises:
        TrainingDataError: G maps the estimate to another shape than the data's.
        PhysicsError: G's result does not depend on its input for autograd.
    """
    predicted = operator(estimate)
    if predicted.shape != y.shape:
        raise TrainingDataError(
            f"operator and data do not fit. Expected data {list(predicted.shape)}, as "
            f"{type(operator).__name__} gives them, got {list(y.shape)}. Next, build the operator "
            "for these data."
        )
    if torch.is_grad_enabled() and estimate.requires_grad and not predicted.requires_grad:
        raise PhysicsError(
            f"{type(operator).__name__} is not differentiable: expected a result with a gradient, "
            "got one cut off from its input. Next, compute it by torch functions alone, without "
            "detach(), numpy or no_grad()."
        )
    return 0.5 * data_norm(y - predicted).mean()


def model_constrained_loss(
    estimate: Tensor,
    truth: Tensor,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    weight: float,
    parameter_norm: SquaredNorm,
    data_norm: SquaredNorm,
) -> Tensor:
    """mcDNN: 1/2 ||u - Psi(y)||^2 + weight/2 ||y - G(Psi(y))||^2."""
    misfit = data_misfit(estimate, y, operator, data_norm)
    return naive_loss(estimate, truth, parameter_norm) + weight * misfit


def tnet_loss(
    estimate: Tensor,
    prior_mean: Tensor,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    weight: float,
    parameter_norm: SquaredNorm,
    data_norm: SquaredNorm,
) -> Tensor:
    """TNet: 1/2 ||u0 - Psi(y)||^2 + weight/2 ||y - G(Psi(y))||^2; no true parameter is needed.

    Its pointwise minimiser is the Tikhonov solution for y, whatever the data are.
    """
    misfit = data_misfit(estimate, y, operator, data_norm)
    return 0.5 * parameter_norm(prior_mean - estimate).mean() + weight * misfit
