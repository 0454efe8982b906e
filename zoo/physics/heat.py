"""Steady heat with an unknown conductivity, seen by a few sensors.

The two-dimensional example of Nguyen and Bui-Thanh (TNet, SIAM J. Sci. Comput.,
doi 10.1137/22M1526708): -div(e^u grad w) = 20 on the unit square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import PhysicsError
from zoo.physics.operator import Space

SOURCE = 20.0


def karhunen_loeve_basis(side: int, n_modes: int, length: float = 0.3) -> Tensor:
    """[side^2, n_modes] float64: sqrt(eigenvalue) * eigenvector of exp(-d^2 / (2 length^2)).

    The points are the midpoints of side x side cells; independent standard normal coefficients
    give a field of about unit variance.
    """
    points = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    one = torch.exp(-0.5 * ((points[:, None] - points) / length) ** 2)
    values, vectors = torch.linalg.eigh(torch.kron(one, one))
    values, vectors = values.flip(0)[:n_modes], vectors.flip(1)[:, :n_modes]
    # The sign of an eigenvector is the library's whim.
    signs = torch.where(vectors.sum(0) < 0, -1.0, 1.0)
    return vectors * signs * values.clamp_min(0.0).sqrt()


def random_sensors(side: int, n_sensors: int, seed: int) -> list[int]:
    """Sorted indices of distinct cells of a side x side grid."""
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(side**2, generator=generator)[:n_sensors].tolist())


class Heat(nn.Module):
    """Coefficients z [N, n_modes] -> temperatures w at the sensors, [N, n_sensors].

    u = basis z is the logarithm of the conductivity in the cells of a side x side grid;
    -div(e^u grad w) = 20 by finite volumes, harmonic means on the faces; w = 0 on the right, upper
    and lower side, no flux through the left one. Solved densely and batched, and differentiated
    through the solution: the matrix has side^4 entries a sample.

    Args:
        side: cells a side. n_modes: of the prior. n_sensors: cells seen.
        sensor_seed: draws them; the same on every rank.

    Raises:
        PhysicsError: more sensors or modes than cells, or none.
    """

    is_linear = False

    def __init__(
        self,
        side: int = 16,
        n_modes: int = 15,
        n_sensors: int = 10,
        length: float = 0.3,
        sensor_seed: int = 0,
    ) -> None:
        super().__init__()
        if not (1 <= n_sensors <= side**2 and 1 <= n_modes <= side**2):
            raise PhysicsError(
                f"expected 1 to {side**2} sensors and modes on a grid of {side} x {side}, got "
                f"{n_sensors} and {n_modes}"
            )
        self.side = side
        self.domain, self.codomain = Space((n_modes,)), Space((n_sensors,))
        self.sensors: Sequence[int] = random_sensors(side, n_sensors, sensor_seed)
        basis = karhunen_loeve_basis(side, n_modes, length)
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        self.domain.require("z", z)
        return self.temperature(z).flatten(1)[:, self.sensors]

    def field(self, z: Tensor) -> Tensor:
        """u, the logarithm of the conductivity, [N, side, side]."""
        return (z @ self.basis.to(z.dtype).T).unflatten(1, (self.side, self.side))

    def temperature(self, z: Tensor) -> Tensor:
        """w, [N, side, side]."""
        conductivity = self.field(z).exp()
        matrix = conduction_matrix(conductivity)
        source = torch.full_like(conductivity.flatten(1), SOURCE / self.side**2)
        return torch.linalg.solve(matrix, source).unflatten(1, (self.side, self.side))


def conduction_matrix(conductivity: Tensor) -> Tensor:
    """[N, side, side] -> the matrix of fluxes out of each cell, [N, side^2, side^2]."""
    side = conductivity.shape[1]
    k = conductivity
    across, down = _harmonic(k[:, :, :-1], k[:, :, 1:]), _harmonic(k[:, :-1], k[:, 1:])
    zero = torch.zeros_like(k)
    # Fluxes into the right and the lower neighbour, zero in the last column and row.
    right = torch.cat([across, zero[:, :, :1]], 2).flatten(1)
    below = torch.cat([down, zero[:, :1]], 1).flatten(1)
    # Half a cell lies between a midpoint and the wall: twice the conductance.
    edges = torch.zeros(side, side, dtype=k.dtype, device=k.device)
    edges[:, -1] += 2.0
    edges[0] += 2.0
    edges[-1] += 2.0
    to_wall = (edges * k).flatten(1)
    left, above = _shifted(right, 1), _shifted(below, side)
    matrix = torch.diag_embed(right + below + left + above + to_wall)
    matrix = matrix - torch.diag_embed(right[:, :-1], 1) - torch.diag_embed(right[:, :-1], -1)
    below = below[:, :-side]
    return matrix - torch.diag_embed(below, side) - torch.diag_embed(below, -side)


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    return 2.0 * a * b / (a + b)


def _shifted(values: Tensor, places: int) -> Tensor:
    return torch.cat([torch.zeros_like(values[:, :places]), values[:, :-places]], 1)
