"""The autoencoders of the linear case in closed form: what affine halves converge to.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033; TAEN: Comput. Methods Appl. Mech. Eng. 446, 2025.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from zoo.model.closed_form import Affine, LinearProblem, regression


class Halves(NamedTuple):
    """Both halves: `net` y -> u, `surrogate` u -> y."""

    net: Affine
    surrogate: Affine


def parameters_to_parameters(
    problem: LinearProblem, parameters: Tensor, data: Tensor, weight: float = 0.0
) -> Halves:
    """POP; with a weight of the misfit mcPOP. The net is trained on the surrogate's results."""
    surrogate = regression(parameters, data)
    seen = surrogate(parameters)
    net = problem.model_constrained(parameters, data, weight, inputs=seen)
    return Halves(net, surrogate)


def observations_to_observations(
    problem: LinearProblem, net: Affine, data: Tensor, model_constrained: bool
) -> Halves:
    """OPO around its encoder `net` (nDNN); mcOPO (mcDNN) and TAEN (TNet) learn G itself."""
    estimate = net(data)
    target = estimate @ problem.matrix.T if model_constrained else data
    return Halves(net, regression(estimate, target))
