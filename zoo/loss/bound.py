"""A bound on the generalisation error of a learned inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def generalization_bound(
    composition_lipschitz: float,
    net_lipschitz: float,
    radius: float,
    noise_bound: float,
    loss_bound: float,
    covering_number: int,
    n_samples: int,
    failure_probability: float = 0.05,
) -> float:
    """With probability 1 - zeta over the training set, the expected loss exceeds its mean by less.

        (1 + Lip(f o F)) psi + 2 eta_0 Lip(f) + M sqrt((2 K ln 2 + 2 ln(1/zeta)) / m)

    for the loss ||x - f(F(x) + eta)||_2 <= M and ||eta||_2 <= eta_0. Derived in the framework of
    Amjad, Lyu and Rodrigues (arXiv 1901.11352; with the operator in IEEE TSP 69, 2021), the
    robustness of Xu and Mannor 2012 (doi 10.1007/s10994-011-5268-1, theorem 3); the constants are
    of this derivation, not quoted from the paper.

    Args:
        composition_lipschitz: sup ||J_{f o F}||_2. net_lipschitz: sup ||J_f||_2.
        radius: psi, the diameter of the cells that cover the truths.
        noise_bound: eta_0. loss_bound: M.
        covering_number: K, the number of cells.
        n_samples: m. failure_probability: zeta.

    Raises:
        ValueError: there are no samples, or zeta is no probability.

    >>> round(generalization_bound(1.0, 1.0, 0.1, 0.0, 1.0, 10, 1000), 3)
    0.341
    """
    if n_samples < 1 or not 0.0 < failure_probability <= 1.0:
        raise ValueError(
            "expected at least one sample and a failure probability in (0, 1], got "
            f"n_samples={n_samples} and failure_probability={failure_probability}"
        )
    cells = 2.0 * covering_number * math.log(2.0) + 2.0 * math.log(1.0 / failure_probability)
    return (
        (1.0 + composition_lipschitz) * radius
        + 2.0 * noise_bound * net_lipschitz
        + loss_bound * math.sqrt(cells / n_samples)
    )


def greedy_covering_number(points: Tensor, radius: float) -> int:
    """How many balls of diameter `radius` around points cover all of `points` [N, ...].

    The next ball is put around the first point not covered yet. For a finite sample only: of the
    space that the points are drawn from this is a lower bound in practice.
    """
    remaining, count = points.flatten(1), 0
    while len(remaining):
        distances = torch.linalg.vector_norm(remaining - remaining[0], dim=1)
        remaining = remaining[distances > radius / 2.0]
        count += 1
    return count
