"""Burgers' operator against the solution of Cole and Hopf, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import PhysicsError
from zoo.physics.burgers import Burgers


def test_solution_is_that_of_cole_and_hopf() -> None:
    """u = -2 nu d(log phi)/dx, phi the heat flow of exp(-int u_0 / (2 nu))."""
    operator = Burgers(128, n_modes=4, n_sensors=8, viscosity=0.02, n_steps=40)
    z = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n, nu = 1024, 0.02
    fine = Burgers(n, n_modes=4, n_sensors=8).field(z)
    k = 2.0 * math.pi * torch.fft.rfftfreq(n, 1.0 / n, dtype=torch.float64)
    inverse = torch.where(k > 0, 1.0 / k.clamp_min(1.0), 0.0)
    potential = torch.fft.irfft(-1j * inverse * torch.fft.rfft(fine), n=n)
    heated = torch.fft.rfft((-potential / (2.0 * nu)).exp()) * torch.exp(-0.5 * nu * k**2)
    phi, slope = (torch.fft.irfft(spectrum, n=n) for spectrum in (heated, 1j * k * heated))
    expected = (-2.0 * nu * slope / phi)[:, :: n // 128]
    torch.testing.assert_close(operator.state(z), expected, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(operator(z), expected[:, ::16], rtol=0.0, atol=1e-6)


def test_derivative_is_that_of_differences() -> None:
    operator = Burgers(16, n_modes=3, n_sensors=4, n_steps=3)
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, (z,))


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(PhysicsError, match="1 to 14 modes on 16 points, got 4 and 15"):
        Burgers(16, n_modes=15, n_sensors=4)
