"""Steady heat with an unknown conductivity, seen by a few sensors.

The two-dimensional example of Nguyen and Bui-Thanh (TNet, SIAM J. Sci. Comput.,
doi 10.1137/22M1526708): -div(e^u grad w) = 20 on the unit square.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import PhysicsError
from zoo.physics.sensed_field import SensedField, random_sensors

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


class Heat(SensedField):
    """Coefficients z [N, n_modes] -> temperatures w at the sensors, [N, n_sensors].

    The field u = basis z is the logarithm of the conductivity in the cells of a side x side grid;
    -div(e^u grad w) = 20 by finite volumes, harmonic means on the faces; w = 0 on the right, upper
    and lower side, no flux through the left one. Solved by `solve_conduction`, batched, and
    differentiated through the solution.

    Args:
        side: cells a side. n_modes: of the prior. n_sensors: cells seen.
        length: of correlation, of the logarithm of the conductivity. deviation: its standard
            deviation, nearly: modes beyond `n_modes` are left out.
        sensor_seed: draws the sensors; the same on every rank.

    Raises:
        PhysicsError: more sensors or modes than cells, or none.
    """

    def __init__(
        self,
        side: int = 16,
        n_modes: int = 15,
        n_sensors: int = 10,
        length: float = 0.3,
        deviation: float = 1.0,
        sensor_seed: int = 0,
    ) -> None:
        if not (1 <= n_sensors <= side**2 and 1 <= n_modes <= side**2):
            raise PhysicsError(
                f"expected 1 to {side**2} sensors and modes on a grid of {side} x {side}, got "
                f"{n_sensors} and {n_modes}"
            )
        basis = deviation * karhunen_loeve_basis(side, n_modes, length)
        super().__init__(basis, random_sensors(side, n_sensors, sensor_seed), (side, side))
        self.side = side

    def state(self, z: Tensor) -> Tensor:
        """w, [N, side, side]."""
        conductivity = self.field(z).exp()
        source = torch.full_like(conductivity, SOURCE / self.side**2)
        return solve_conduction(conductivity, source)


class _Conductances(NamedTuple):
    """Of each cell, [N, side, side]: to the right and lower neighbour, and the sum of all."""

    right: Tensor
    below: Tensor
    total: Tensor


def _conductances(conductivity: Tensor) -> _Conductances:
    k = conductivity
    zero = torch.zeros_like(k)
    # Zero in the last column and row.
    right = torch.cat([_harmonic(k[:, :, :-1], k[:, :, 1:]), zero[:, :, :1]], 2)
    below = torch.cat([_harmonic(k[:, :-1], k[:, 1:]), zero[:, :1]], 1)
    # Half a cell lies between a midpoint and the wall: twice the conductance.
    edges = torch.zeros(k.shape[1:], dtype=k.dtype, device=k.device)
    edges[:, -1] += 2.0
    edges[0] += 2.0
    edges[-1] += 2.0
    left = torch.cat([zero[:, :, :1], right[:, :, :-1]], 2)
    above = torch.cat([zero[:, :1], below[:, :-1]], 1)
    return _Conductances(right, below, right + below + left + above + edges * k)


def conduction_matrix(conductivity: Tensor) -> Tensor:
    """[N, side, side] -> the matrix of fluxes out of each cell, [N, side^2, side^2]."""
    side = conductivity.shape[1]
    right, below, total = (part.flatten(1) for part in _conductances(conductivity))
    matrix = torch.diag_embed(total)
    matrix = matrix - torch.diag_embed(right[:, :-1], 1) - torch.diag_embed(right[:, :-1], -1)
    below = below[:, :-side]
    return matrix - torch.diag_embed(below, side) - torch.diag_embed(below, -side)


def solve_conduction(conductivity: Tensor, source: Tensor) -> Tensor:
    """w [N, side, side] with `conduction_matrix(conductivity)` w = source [N, side, side].

    Elimination row by row of the grid: blocks of side x side in place of a dense matrix of side^2
    rows, a side-th of its memory.
    """
    right, below, total = _conductances(conductivity)
    band = torch.diag_embed(right[..., :-1], 1)
    rows = torch.diag_embed(total) - band - band.transpose(2, 3)
    # What is left of row i above: w_i = start_i + carry_i w_(i+1).
    starts, carries = [], []
    block, eliminated = rows[:, 0], source[:, 0]
    for i in range(conductivity.shape[1]):
        if i > 0:
            back = below[:, i - 1]
            block = rows[:, i] - back[:, :, None] * carries[-1]
            eliminated = source[:, i] + back * starts[-1]
        right_sides = torch.cat([eliminated[:, :, None], torch.diag_embed(below[:, i])], 2)
        solved = torch.linalg.solve(block, right_sides)
        starts.append(solved[:, :, 0])
        carries.append(solved[:, :, 1:])
    w = [starts[-1]]
    for start, carry in zip(reversed(starts[:-1]), reversed(carries[:-1]), strict=True):
        w.append(start + (carry @ w[-1][:, :, None])[:, :, 0])
    return torch.stack(w[::-1], 1)


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    return 2.0 * a * b / (a + b)
