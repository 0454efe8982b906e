"""The heat operator against a solution by hand, and the iterative Tikhonov baseline on it."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import PhysicsError
from zoo.model.tikhonov import Tikhonov, batched_jacobian
from zoo.physics.heat import SOURCE, Heat, conduction_matrix, solve_conduction


def test_matrix_is_symmetric_and_positive() -> None:
    matrix = conduction_matrix(torch.rand(2, 5, 5, dtype=torch.float64) + 0.5)
    torch.testing.assert_close(matrix, matrix.transpose(1, 2))
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_elimination_by_rows_solves_the_dense_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    k = torch.rand(3, 6, 6, dtype=torch.float64, generator=generator) + 0.2
    source = torch.rand(3, 6, 6, dtype=torch.float64, generator=generator)
    expected = torch.linalg.solve(conduction_matrix(k), source.flatten(1))
    torch.testing.assert_close(solve_conduction(k, source).flatten(1), expected)
    assert torch.autograd.gradcheck(
        solve_conduction, (k[:1, :3, :3].requires_grad_(), source[:1, :3, :3])
    )


def test_heat_leaves_through_the_walls() -> None:
    """What the source puts in, the three cold walls take: conservation, exact on any grid."""
    operator = Heat(8, n_modes=4, n_sensors=3)
    z = torch.randn(2, 4, dtype=torch.float64)
    k, w = operator.field(z).exp(), operator.state(z)
    out = 2.0 * (k * w)[:, :, -1].sum(1) + 2.0 * (k * w)[:, 0].sum(1) + 2.0 * (k * w)[:, -1].sum(1)
    torch.testing.assert_close(out, torch.full_like(out, SOURCE))


def test_uniform_conductivity_has_the_series_solution() -> None:
    """By symmetry the problem is half of a 2 x 1 rectangle with all walls cold."""
    operator = Heat(32, n_modes=1, n_sensors=1)
    w = operator.state(torch.zeros(1, 1, dtype=torch.float64))[0]
    x = y = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    odd = torch.arange(1, 60, 2, dtype=torch.float64)
    i, j = odd[:, None], odd[None, :]
    pi = torch.pi
    factor = 16 * SOURCE / (pi**2 * i * j * pi**2 * ((i / 2) ** 2 + j**2))
    across = torch.sin(pi * i[..., None] * (x + 1.0) / 2.0)[:, 0]
    down = torch.sin(pi * j.T * y)
    expected = torch.einsum("ij,iq,jp->pq", factor, across, down)
    assert float((w - expected).abs().max() / expected.max()) < 0.01


def test_jacobian_column_by_column_is_autograds() -> None:
    operator = Heat(5, n_modes=3, n_sensors=4)
    z = torch.randn(2, 3, dtype=torch.float64)
    single = torch.func.jacrev(lambda v: operator(v[None])[0])
    expected = torch.stack([single(v) for v in z])
    torch.testing.assert_close(batched_jacobian(operator, z), expected)


def test_tikhonovs_solution_is_a_stationary_point() -> None:
    operator = Heat(5, n_modes=3, n_sensors=4)
    y = operator(torch.randn(3, 3, dtype=torch.float64))
    weight = 100.0
    z = Tikhonov(operator, weight, n_iterations=40)(y).requires_grad_()
    value = 0.5 * (z.square().sum() + weight * (y - operator(z)).square().sum())
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.abs().max() < 1e-6


def test_too_many_sensors_are_named() -> None:
    with pytest.raises(PhysicsError, match="1 to 25 sensors"):
        Heat(5, n_sensors=26)
