"""Fast electrons: wavelength, interaction with a potential, converged probes.

Formulas: E. J. Kirkland, Advanced Computing in Electron Microscopy, 2nd ed. (2010), equations 2.5
(wavelength), 5.6 (interaction) and 5.45 (probe). Lengths in Å, angles in rad, energies in eV,
spatial frequencies in 1/Å, potentials in V.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import PhysicsError

# CODATA 2018
_PLANCK_JS = 6.62607015e-34
_LIGHT_M_PER_S = 299792458.0
_ELECTRON_KG = 9.1093837015e-31
_CHARGE_C = 1.602176634e-19

# Products of two functions that reach 2/3 of the grid's highest frequency alias only above 2/3.
_BAND_LIMIT = 2.0 / 3.0
# Width over which the band limit falls to zero, in cycles a pixel; the highest frequency is 0.5.
_BAND_TAPER = 0.01


class Microscope(NamedTuple):
    """A converged electron beam on a periodic square grid.

    Attributes:
        side_px: pixels along each side of wave, potential and diffraction pattern.
        pixel_A: side of a pixel.
        semiangle_rad: of the round, hard-edged probe-forming aperture.
        defocus_A: positive is underfocus.
    """

    side_px: int
    pixel_A: float  # noqa: N815 -- Å
    energy_eV: float  # noqa: N815
    semiangle_rad: float
    defocus_A: float = 0.0  # noqa: N815


def wavelength_A(energy_eV: float) -> float:  # noqa: N802, N803
    """Relativistic de Broglie wavelength.

    >>> round(wavelength_A(200e3), 6)
    0.025079
    """
    energy_J = energy_eV * _CHARGE_C  # noqa: N806
    rest_J = _ELECTRON_KG * _LIGHT_M_PER_S**2  # noqa: N806
    return 1e10 * _PLANCK_JS * _LIGHT_M_PER_S / math.sqrt(energy_J * (2.0 * rest_J + energy_J))


def interaction_rad_per_VA(energy_eV: float) -> float:  # noqa: N802, N803
    """Phase that a projected potential of 1 V Å gives the wave.

    >>> round(interaction_rad_per_VA(200e3), 9)
    0.000728838
    """
    gamma = 1.0 + energy_eV * _CHARGE_C / (_ELECTRON_KG * _LIGHT_M_PER_S**2)
    wavelength_m = 1e-10 * wavelength_A(energy_eV)
    per_Vm = 2.0 * math.pi * gamma * _ELECTRON_KG * _CHARGE_C * wavelength_m / _PLANCK_JS**2  # noqa: N806
    return 1e-10 * per_Vm


def frequencies(side_px: int, pixel_A: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Frequencies along rows [side_px, 1] and columns [1, side_px], 1/Å, zero first; float64."""
    k = torch.fft.fftfreq(side_px, pixel_A, dtype=torch.float64)
    return k[:, None], k[None, :]


def band_limit(side_px: int) -> Tensor:
    """1 below two thirds of the highest frequency, 0 above, a thin cosine edge between.

    [side_px, side_px] float64, zero frequency first.
    """
    row, col = frequencies(side_px, 1.0)
    k = (row**2 + col**2).sqrt()
    cutoff, taper = 0.5 * _BAND_LIMIT, _BAND_TAPER
    edge = 0.5 * (1.0 + torch.cos(math.pi * (k - cutoff + taper) / taper))
    return torch.where(k < cutoff - taper, 1.0, torch.where(k > cutoff, 0.0, edge))


def propagator(microscope: Microscope, distance_A: float) -> Tensor:  # noqa: N803
    """Fresnel propagation in Fourier space, exp(-i pi lambda dz k^2), band limited.

    [side_px, side_px] complex128 (Kirkland 2010, equation 6.65).
    """
    row, col = frequencies(microscope.side_px, microscope.pixel_A)
    phase = -math.pi * wavelength_A(microscope.energy_eV) * distance_A * (row**2 + col**2)
    return torch.polar(band_limit(microscope.side_px), phase)


def probes(microscope: Microscope, positions_A: Tensor) -> Tensor:  # noqa: N803
    """Waves of the focused beam at each position, of total intensity 1 each.

    Args:
        positions_A: [P, 2], row and column from the first pixel's centre; any real numbers, since
            the grid is periodic.

    Returns:
        [P, side_px, side_px] complex128.

    Raises:
        PhysicsError: `positions_A` is not [P, 2], or no beam passes the aperture on this grid.
    """
    if positions_A.ndim != 2 or positions_A.shape[1] != 2:
        raise PhysicsError(
            f"positions_A does not fit. Expected [P, 2] (row, column in Å), got "
            f"{list(positions_A.shape)}. Next, flatten the scan to a list of positions."
        )
    row, col = frequencies(microscope.side_px, microscope.pixel_A)
    shift = positions_A.double()
    ramp = torch.exp(
        -2j * math.pi * (row * shift[:, 0, None, None] + col * shift[:, 1, None, None])
    )
    return torch.fft.ifft2(_aperture(microscope) * ramp, norm="ortho")


def _aperture(microscope: Microscope) -> Tensor:
    """The probe in Fourier space, [side_px, side_px] complex128, of total intensity 1."""
    row, col = frequencies(microscope.side_px, microscope.pixel_A)
    k_squared = row**2 + col**2
    wavelength = wavelength_A(microscope.energy_eV)
    limit = _BAND_LIMIT * 0.5 / microscope.pixel_A * wavelength
    if microscope.semiangle_rad > limit:
        raise PhysicsError(
            f"the aperture of {1e3 * microscope.semiangle_rad:.1f} mrad is cut by the grid. "
            f"Expected at most {1e3 * limit:.1f} mrad, two thirds of what pixels of "
            f"{microscope.pixel_A} Å hold. Next, take smaller pixels or a smaller aperture."
        )
    inside = (k_squared.sqrt() * wavelength <= microscope.semiangle_rad).double()
    phase = -math.pi * wavelength * -microscope.defocus_A * k_squared
    wave = torch.polar(inside, phase)
    return wave / wave.abs().square().sum().sqrt()
