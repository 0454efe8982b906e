"""Logarithms of conductivities from the prior, and noisy temperatures at the sensors."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.data.samples import SamplesDataModule
from zoo.physics.operator import Operator


class CoefficientsDataModule(SamplesDataModule):
    """Standard normal coefficients z of a prior's expansion; y = G(z) + noise.

    `noise` is relative to the root mean square of the clean data. In the precision of `precision`.
    """

    noise_is_relative = True

    def __init__(
        self,
        operator: Operator,
        noise: float = 0.005,
        n_train: int = 1,
        n_val: int = 50,
        n_test: int = 500,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(operator, noise, n_train, n_val, n_test, batch_size, seed)

    def truths(self, split: str, n: int, generator: torch.Generator) -> Tensor:
        shape = self.operator.domain.shape
        return torch.randn(n, *shape, dtype=torch.float64, generator=generator)
