"""Two-dimensional vorticity on a torus: from its start to a few sensors at a later time.

The Navier-Stokes problem of Nguyen and Bui-Thanh (TNet, SIAM J. Sci. Comput.,
doi 10.1137/22M1526708): 32 x 32 points, viscosity 1e-3, 20 sensors at time 10. Forcing and prior
are those of Li et al., arXiv 2010.08895, section 5.3, as printed there (data sets made by their
code have 7^3 for the 7^(3/2): `amplitude=4.3` here). How many modes, where the sensors are, and
the method in time are this project's choice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.errors import PhysicsError
from zoo.physics.integrating_factor import runge_kutta_step
from zoo.physics.sensed_field import SensedField, random_sensors


def gaussian_field_basis(side: int, n_modes: int) -> Tensor:
    """[side^2, n_modes] float64: sqrt(eigenvalue) * eigenfunction of 7^1.5 (-Laplace + 49 I)^-2.5.

    Real Fourier modes on the points i / side of the unit torus, from the longest wave on, without
    the mean, which a torus has none of. `sum_j z_j basis_j` has the prior's distribution, cut off.

    Raises:
        PhysicsError: more modes than the grid holds below its highest frequency.
    """
    waves = _half_plane(side // 2 - 1)
    if not 1 <= n_modes <= 2 * len(waves):
        raise PhysicsError(
            f"expected 1 to {2 * len(waves)} modes on a grid of {side} x {side}, got {n_modes}"
        )
    points = torch.arange(side, dtype=torch.float64) / side
    columns = []
    for i, j in waves:
        phase = 2.0 * math.pi * (i * points[:, None] + j * points)
        eigenvalue = 7.0**1.5 * (4.0 * math.pi**2 * (i**2 + j**2) + 49.0) ** -2.5
        columns += [
            math.sqrt(2.0 * eigenvalue) * wave.flatten() for wave in (phase.cos(), phase.sin())
        ]
    return torch.stack(columns[:n_modes], 1)


def _half_plane(largest: int) -> list[tuple[int, int]]:
    """Integer wave vectors, one of k and -k, by length."""
    span = range(-largest, largest + 1)
    waves = [(i, j) for i in span for j in span if i > 0 or (i == 0 and j > 0)]
    return sorted(waves, key=lambda k: (k[0] ** 2 + k[1] ** 2, -k[0], -k[1]))


class NavierStokes(SensedField):
    """Coefficients z [N, n_modes] -> vorticity at the sensors at `time`, [N, n_sensors].

    d omega / dt + v . grad omega = viscosity Laplace omega + 0.1 (sin(2 pi (x + y)) +
    cos(2 pi (x + y))), v the curl of the stream function; the field, omega at 0, is `basis` z.
    Pseudo-spectral, two thirds of the frequencies kept; diffusion exact by an integrating factor
    (Cox and Matthews 2002, doi 10.1006/jcph.2002.6995), the rest by Runge and Kutta's fourth order.
    Differentiated through all steps. At the sensors, 10 steps differ from 1,000 (the paper's step
    of 0.01) by 1.6e-5, where data are 0.6 and their noise in the claim is 3e-3.

    Args:
        side: points a side. n_steps: of time.
        amplitude: factor on the prior's deviation: the larger, the less linear.
        sensor_seed: draws the sensors; the same on every rank.

    Raises:
        PhysicsError: more sensors than points, more modes than frequencies, or none.
    """

    def __init__(
        self,
        side: int = 32,
        n_modes: int = 15,
        n_sensors: int = 20,
        viscosity: float = 1e-3,
        time: float = 10.0,
        n_steps: int = 10,
        sensor_seed: int = 0,
        amplitude: float = 1.0,
    ) -> None:
        if not 1 <= n_sensors <= side**2:
            raise PhysicsError(f"expected 1 to {side**2} sensors, got {n_sensors}")
        sensors = random_sensors(side, n_sensors, sensor_seed)
        basis = amplitude * gaussian_field_basis(side, n_modes)
        super().__init__(basis, sensors, (side, side))
        self.n_steps = n_steps
        self.step = time / n_steps
        for name, buffer in _spectral(side, viscosity, self.step).items():
            self.register_buffer(name, buffer, persistent=False)

    def state(self, z: Tensor) -> Tensor:
        """omega at `time`, [N, side, side]."""
        spectrum = torch.fft.rfft2(self.field(z))
        decay = self.half_decay.to(z.dtype)
        for _ in range(self.n_steps):
            spectrum = runge_kutta_step(spectrum, self._tendency, decay, self.step)
        return torch.fft.irfft2(spectrum, s=self.shape)

    def _tendency(self, spectrum: Tensor) -> Tensor:
        """-v . grad omega + forcing, in frequencies: the divergence of omega v."""
        to_fields = self.to_fields.to(spectrum.dtype)
        fields = torch.fft.irfft2(spectrum[:, None] * to_fields, s=self.shape)
        down, across, omega = fields.unbind(1)
        fluxes = torch.fft.rfft2(torch.stack([down * omega, across * omega], 1))
        advected = (fluxes * self.minus_divergence.to(spectrum.dtype)).sum(1)
        return advected + self.forcing.to(spectrum.dtype)


def _spectral(side: int, viscosity: float, step: float) -> dict[str, Tensor]:
    """Multipliers on the half spectrum of `rfft2`, complex128; `half_decay` is float64.

    to_fields: omega -> (v along axis 0, v along axis 1, omega). minus_divergence: two fluxes ->
    minus the terms of their divergence, without the highest third of frequencies.
    """
    k = 2.0 * math.pi * torch.fft.fftfreq(side, 1.0 / side, dtype=torch.float64)[:, None]
    q = 2.0 * math.pi * torch.fft.rfftfreq(side, 1.0 / side, dtype=torch.float64)
    squared = k**2 + q**2
    stream = torch.where(squared > 0, 1.0 / squared.clamp_min(1e-30), 0.0)
    limit = 2.0 * math.pi * side / 3.0
    kept = ((k.abs() < limit) & (q < limit)).to(torch.complex128)
    points = torch.arange(side, dtype=torch.float64) / side
    phase = 2.0 * math.pi * (points[:, None] + points)
    return {
        "half_decay": torch.exp(-0.5 * step * viscosity * squared),
        "to_fields": torch.stack([1j * q * stream, -1j * k * stream, torch.ones_like(stream) + 0j])
        * kept,
        "minus_divergence": torch.stack([-1j * (k + 0 * q), -1j * (q + 0 * k)]) * kept,
        "forcing": torch.fft.rfft2(0.1 * (phase.sin() + phase.cos())),
    }
