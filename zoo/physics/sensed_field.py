"""Differential equations whose solution is seen by a few sensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.physics.operator import Space


def random_sensors(side: int, n_sensors: int, seed: int) -> list[int]:
    """Sorted indices of distinct cells of a side x side grid."""
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(side**2, generator=generator)[:n_sensors].tolist())


class SensedField(nn.Module):
    """Coefficients z [N, n_modes] -> a solution at the sensors, [N, n_sensors].

    The coefficients are those of an unknown field in a basis; `state(z)`, of a subclass, is the
    solution that it leads to, [N, *shape].

    Args:
        basis: [points, n_modes] float64. sensors: flat indices of points.
        shape: of the grid of the field and of the solution.
    """

    is_linear = False

    def __init__(self, basis: Tensor, sensors: Sequence[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.sensors = shape, sensors
        self.domain, self.codomain = Space((basis.shape[1],)), Space((len(sensors),))
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        self.domain.require("z", z)
        return self.observed(self.state(z))

    def state(self, z: Tensor) -> Tensor:
        """The solution, [N, *shape]."""
        raise NotImplementedError

    def observed(self, state: Tensor) -> Tensor:
        """[N, *shape] at the sensors, [N, n_sensors]."""
        return state.flatten(1)[:, self.sensors]

    def field(self, z: Tensor) -> Tensor:
        """The unknown field, [N, *shape]."""
        return (z @ self.basis.to(z.dtype).T).unflatten(1, self.shape)
