"""Multislice electron scattering: slices of a potential -> diffraction patterns of a scanned probe.

psi_{s+1} = F^-1[ P F( t_s psi_s ) ], t_s = exp(i sigma V_s), P = exp(-i pi lambda dz k^2), and the
pattern is |F psi_S|^2 (Cowley and Moodie, Acta Cryst. 10, 609 (1957); Kirkland 2010, chapter 6).
Transmission and propagation are limited to two thirds of the grid's band, as in Kirkland and abTEM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.physics.electron import Microscope, band_limit, interaction_rad_per_VA, probes, propagator
from zoo.physics.operator import Space


class Multislice(nn.Module):
    """Slices of a projected potential [N, S, H, W], V Å each -> patterns [N, P, H, W].

    A pattern is the share of the beam in each detector pixel, its centre at [H / 2, W / 2]. It sums
    to 1 but for what the band limit takes away and the little by which the limit makes the
    transmission's modulus ring about 1.

    Args:
        positions_A: [P, 2], as `zoo.physics.electron.probes` takes them.

    Raises:
        PhysicsError: as `probes` does.
    """

    is_linear = False

    def __init__(
        self,
        microscope: Microscope,
        positions_A: Tensor,  # noqa: N803
        n_slices: int,
        slice_thickness_A: float,  # noqa: N803
    ) -> None:
        super().__init__()
        side_px = microscope.side_px
        self.domain = Space((n_slices, side_px, side_px))
        self.codomain = Space((len(positions_A), side_px, side_px))
        self.sigma = interaction_rad_per_VA(microscope.energy_eV)
        waves, step = probes(microscope, positions_A), propagator(microscope, slice_thickness_A)
        self.register_buffer("probes", waves.to(torch.complex64), persistent=False)
        self.register_buffer("propagator", step.to(torch.complex64), persistent=False)
        self.register_buffer("band_limit", band_limit(side_px).float(), persistent=False)

    def forward(self, slices: Tensor) -> Tensor:
        self.domain.require("slices", slices)
        transmission = self._transmission(slices)
        wave = self.probes * transmission[:, 0, None]
        for s in range(1, slices.shape[1]):
            wave = torch.fft.ifft2(self.propagator * torch.fft.fft2(wave))
            wave = wave * transmission[:, s, None]
        far = self.band_limit * torch.fft.fft2(wave, norm="ortho")
        return torch.fft.fftshift(far.abs().square(), dim=(-2, -1))

    def _transmission(self, slices: Tensor) -> Tensor:
        phase = self.sigma * slices
        wave = torch.complex(phase.cos(), phase.sin())
        return torch.fft.ifft2(self.band_limit * torch.fft.fft2(wave))


class ThinObject(nn.Module):
    """Projected potential [N, 1, H, W], V Å -> patterns [N, P, H, W]: one slice, no propagation.

    |F(psi_probe(r - r_p) exp(i sigma V))|^2: what scattering leaves of a slab so thin that the beam
    does not spread in it (the phase object approximation; Kirkland 2010, section 5.1).
    """

    is_linear = False

    def __init__(self, microscope: Microscope, positions_A: Tensor) -> None:  # noqa: N803
        super().__init__()
        self._slice = Multislice(microscope, positions_A, n_slices=1, slice_thickness_A=0.0)
        self.domain, self.codomain = self._slice.domain, self._slice.codomain

    def forward(self, potential: Tensor) -> Tensor:
        return self._slice(potential)
