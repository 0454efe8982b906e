"""Burgers' equation on a ring: from its start to a few sensors at a later time.

A one-dimensional problem in the manner of Nguyen and Bui-Thanh (TNet, SIAM J. Sci. Comput.,
doi 10.1137/22M1526708), who have one of Burgers too; its numbers here are this project's choice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.errors import PhysicsError
from zoo.physics.integrating_factor import runge_kutta_step
from zoo.physics.sensed_field import SensedField


class Burgers(SensedField):
    """Coefficients z [N, n_modes] -> u at evenly spaced sensors at `time`, [N, n_sensors].

    du/dt + u du/dx = viscosity d^2u/dx^2 on [0, 1), periodic; the field, u at 0, is sum_j z_j b_j
    with b_j the sines and cosines of 2 pi k x, k = 1, 2, ..., times `amplitude` / k.
    Pseudo-spectral, two thirds of the frequencies kept; diffusion exact by an integrating factor
    (Cox and Matthews 2002, doi 10.1006/jcph.2002.6995), the rest by Runge and Kutta's fourth order.
    Differentiated through all steps.

    Args:
        n: points. n_steps: of time.

    Raises:
        PhysicsError: more sensors than points, more modes than frequencies, or none.
    """

    def __init__(
        self,
        n: int = 64,
        n_modes: int = 10,
        n_sensors: int = 16,
        viscosity: float = 0.01,
        amplitude: float = 0.1,
        time: float = 0.5,
        n_steps: int = 10,
    ) -> None:
        if not (1 <= n_sensors <= n and 1 <= n_modes <= 2 * (n // 2 - 1)):
            raise PhysicsError(
                f"expected 1 to {n} sensors and 1 to {2 * (n // 2 - 1)} modes on {n} points, got "
                f"{n_sensors} and {n_modes}"
            )
        sensors = [place * n // n_sensors for place in range(n_sensors)]
        super().__init__(amplitude * _waves(n, n_modes), sensors, (n,))
        self.n_steps = n_steps
        self.step = time / n_steps
        k = 2.0 * math.pi * torch.fft.rfftfreq(n, 1.0 / n, dtype=torch.float64)
        kept = (k < 2.0 * math.pi * n / 3.0).double()
        buffers = {
            "half_decay": torch.exp(-0.5 * self.step * viscosity * k**2),
            "kept": kept,
            "minus_half_slope": -0.5j * k * kept,
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def state(self, z: Tensor) -> Tensor:
        """u at `time`, [N, n]."""
        spectrum = torch.fft.rfft(self.field(z))
        decay = self.half_decay.to(z.dtype)
        for _ in range(self.n_steps):
            spectrum = runge_kutta_step(spectrum, self._tendency, decay, self.step)
        return torch.fft.irfft(spectrum, n=self.shape[0])

    def _tendency(self, spectrum: Tensor) -> Tensor:
        """-d(u^2 / 2)/dx, in frequencies."""
        u = torch.fft.irfft(spectrum * self.kept.to(spectrum.real.dtype), n=self.shape[0])
        return torch.fft.rfft(u**2) * self.minus_half_slope.to(spectrum.dtype)


def _waves(n: int, n_modes: int) -> Tensor:
    points = torch.arange(n, dtype=torch.float64) / n
    columns = []
    for k in range(1, n_modes // 2 + 2):
        phase = 2.0 * math.pi * k * points
        columns += [phase.sin() / k, phase.cos() / k]
    return torch.stack(columns[:n_modes], 1)
