"""The Navier-Stokes operator against exact solutions, conservation laws and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import PhysicsError
from zoo.physics.navier_stokes import NavierStokes, gaussian_field_basis


def _coefficients(n: int, n_modes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, n_modes, dtype=torch.float64, generator=generator)


def test_forced_from_rest_is_the_exact_solution() -> None:
    """The forcing is one wave: it does not advect itself, and only diffusion holds it back."""
    operator = NavierStokes(16, n_modes=4, n_sensors=5, time=3.0)
    points = torch.arange(16, dtype=torch.float64) / 16
    phase = 2.0 * math.pi * (points[:, None] + points)
    rate = 1e-3 * 8.0 * math.pi**2
    expected = 0.1 * (phase.sin() + phase.cos()) * (1.0 - math.exp(-3.0 * rate)) / rate
    state = operator.state(torch.zeros(1, 4, dtype=torch.float64))[0]
    torch.testing.assert_close(state, expected, rtol=0.0, atol=1e-7)
    seen = expected.flatten()[operator.sensors]
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    torch.testing.assert_close(operator(zeros)[0], seen, rtol=0, atol=1e-7)


def test_advection_keeps_mean_and_enstrophy() -> None:
    operator = NavierStokes(24, n_modes=20, n_sensors=1)
    omega = operator.field(_coefficients(2, 20))
    tendency = operator._tendency(torch.fft.rfft2(omega)) - operator.forcing
    advection = torch.fft.irfft2(tendency, s=(24, 24))
    assert advection.abs().max() > 1e-3
    assert advection.mean((1, 2)).abs().max() < 1e-12
    assert (advection * omega).mean((1, 2)).abs().max() < 1e-12


def test_advection_is_that_of_the_equation() -> None:
    """-v . grad omega of two waves, by hand: omega = cos(2 pi x) + cos(4 pi y)."""
    operator = NavierStokes(16, n_modes=4, n_sensors=1)
    points = torch.arange(16, dtype=torch.float64) / 16
    x, y = 2.0 * math.pi * points[:, None], 2.0 * math.pi * points
    omega = torch.cos(x) + torch.cos(2 * y)
    # psi = cos(x) / (2 pi)^2 + cos(2 y) / (4 pi)^2, v = (d psi / dy, -d psi / dx).
    along_x = -torch.sin(2 * y) / (4.0 * math.pi)
    along_y = torch.sin(x) / (2.0 * math.pi)
    slope_x, slope_y = -2.0 * math.pi * torch.sin(x), -4.0 * math.pi * torch.sin(2 * y)
    expected = -(along_x * slope_x + along_y * slope_y)
    tendency = operator._tendency(torch.fft.rfft2(omega)[None]) - operator.forcing
    got = torch.fft.irfft2(tendency, s=(16, 16))[0]
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-12)


def test_time_steps_converge() -> None:
    z = _coefficients(2, 15)
    fine = NavierStokes(n_steps=160).state(z)
    errors = [float((NavierStokes(n_steps=n).state(z) - fine).abs().max()) for n in (10, 20)]
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 8.0


def test_derivative_is_that_of_differences() -> None:
    operator = NavierStokes(8, n_modes=3, n_sensors=4, n_steps=2)
    assert torch.autograd.gradcheck(operator, (_coefficients(2, 3).requires_grad_(),))


def test_modes_of_the_prior_are_orthogonal_and_of_mean_zero() -> None:
    basis = gaussian_field_basis(16, 24)
    gram = basis.T @ basis
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-12
    assert basis.mean(0).abs().max() < 1e-15
    assert (gram.diagonal().diff() < 1e-12).all()


def test_the_prior_has_the_variance_that_its_source_prints() -> None:
    """7^(3/2) (4 pi^2 |k|^2 + 49)^(-5/2), of waves of unit norm: Li et al., section 5.3."""
    basis = gaussian_field_basis(16, 8)
    squared = torch.tensor([1.0] * 4 + [2.0] * 4, dtype=torch.float64)
    expected = 7.0**1.5 * (4.0 * math.pi**2 * squared + 49.0) ** -2.5
    torch.testing.assert_close(basis.square().mean(0), expected)
    larger = NavierStokes(16, n_modes=8, n_sensors=1, amplitude=4.0).basis
    torch.testing.assert_close(larger, 4.0 * basis)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(PhysicsError, match="1 to 64 sensors, got 65"):
        NavierStokes(8, n_modes=3, n_sensors=65)
    with pytest.raises(PhysicsError, match=r"1 to 48 modes .* got 49"):
        gaussian_field_basis(8, 49)
