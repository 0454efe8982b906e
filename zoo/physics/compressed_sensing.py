"""Random projections: fewer measurements than unknowns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.physics.operator import Space


class CompressedSensing(nn.Module):
    """x [N, n] -> A x [N, m] with independent Gaussian entries of variance 1 / m.

    Args:
        n_measurements: m.
        n_unknowns: n.
        seed: of the matrix, which is the same on every rank.

    Raises:
        ValueError: no unknowns, or no measurements.
    """

    is_linear = True

    def __init__(self, n_measurements: int = 24, n_unknowns: int = 64, seed: int = 0) -> None:
        super().__init__()
        if min(n_measurements, n_unknowns) < 1:
            raise ValueError(
                "expected at least one measurement and one unknown, got "
                f"n_measurements={n_measurements}, n_unknowns={n_unknowns}"
            )
        self.domain, self.codomain = Space((n_unknowns,)), Space((n_measurements,))
        entries = self.codomain.random(n_unknowns, torch.float64, seed).T / n_measurements**0.5
        self.register_buffer("matrix", entries.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.domain.require("x", x)
        return x @ self.matrix.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        self.codomain.require("y", y)
        return y @ self.matrix.to(y.dtype)
