"""Electron scattering: against abTEM, and against what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor

from tests.zoo import multislice_reference
from tests.zoo.multislice_reference import MICROSCOPE, SLICE_THICKNESS_A, Reference
from zoo.errors import PhysicsError
from zoo.physics.electron import Microscope, interaction_rad_per_VA, probes, wavelength_A
from zoo.physics.multislice import Multislice, ThinObject

_SMALL = Microscope(16, pixel_A=0.25, energy_eV=200e3, semiangle_rad=0.02)


def _relative_l2(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def _patterns(reference: Reference) -> Tensor:
    slices = reference.slices
    operator = Multislice(MICROSCOPE, reference.positions_A, len(slices), SLICE_THICKNESS_A)
    return operator(slices[None].float())[0]


def test_multislice_equals_the_stored_patterns_of_abtem() -> None:
    reference = multislice_reference.read()
    got = _patterns(reference)
    assert _relative_l2(got, reference.patterns) <= 1e-5
    # Each pattern too: a strong one must not hide a weak one.
    for pattern, expected in zip(got, reference.patterns, strict=True):
        assert _relative_l2(pattern, expected) <= 1e-5
    # Nearly the whole beam is diffracted, so that the comparison is of multiple scattering.
    unscattered = probes(MICROSCOPE, reference.positions_A)
    alone = torch.fft.fftshift(torch.fft.fft2(unscattered, norm="ortho").abs() ** 2, dim=(1, 2))
    assert _relative_l2(alone, reference.patterns) > 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not RequirementCache("abtem"), reason="abTEM is not installed (microscopy)")
def test_multislice_equals_abtem() -> None:
    reference = multislice_reference.compute()
    assert _relative_l2(_patterns(reference), reference.patterns) <= 1e-4
    assert _relative_l2(multislice_reference.read().patterns, reference.patterns) <= 1e-4


def test_wavelength_and_interaction_at_the_tabulated_energies() -> None:
    # Kirkland 2010, tables of section 2.3 and 5.1.
    for energy_eV, wavelength, sigma in ((100e3, 0.03701, 9.2440e-4), (300e3, 0.01969, 6.5262e-4)):
        assert wavelength_A(energy_eV) == pytest.approx(wavelength, rel=3e-4)
        assert interaction_rad_per_VA(energy_eV) == pytest.approx(sigma, rel=3e-4)


def test_no_potential_leaves_the_aperture() -> None:
    pattern = Multislice(_SMALL, torch.zeros(1, 2), 3, 2.0)(torch.zeros(1, 3, 16, 16))[0, 0]
    k = torch.fft.fftshift(torch.fft.fftfreq(16, 0.25))
    inside = (k[:, None] ** 2 + k**2).sqrt() * wavelength_A(200e3) <= 0.02
    torch.testing.assert_close(pattern, inside.float() / inside.sum())


def test_a_constant_potential_changes_nothing_but_the_phase() -> None:
    operator = Multislice(_SMALL, torch.tensor([[1.0, 2.0]]), 2, 2.0)
    torch.testing.assert_close(
        operator(torch.full((1, 2, 16, 16), 300.0)), operator(torch.zeros(1, 2, 16, 16))
    )


def test_moving_probe_and_crystal_together_changes_nothing() -> None:
    slices = 200.0 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    here = Multislice(_SMALL, torch.tensor([[0.5, 1.0]]), 3, 2.0)(slices)
    there = Multislice(_SMALL, torch.tensor([[1.25, 3.0]]), 3, 2.0)(slices.roll((3, 8), (-2, -1)))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-7)


def test_thin_object_is_the_limit_of_thin_slices() -> None:
    slices = 600.0 * torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    # Smooth, as atoms are: what the slices' own band limits would cut is not compared.
    slices = torch.nn.functional.avg_pool2d(slices.repeat(1, 1, 3, 3), 5, 1, 2)[..., 16:32, 16:32]
    position = torch.tensor([[1.0, 2.0]])
    thin = ThinObject(_SMALL, position)(slices.sum(1, keepdim=True))
    gaps = [
        _relative_l2(Multislice(_SMALL, position, 4, thickness_A)(slices), thin)
        for thickness_A in (0.01, 5.0, 10.0)
    ]
    assert gaps[0] < 1e-3 < gaps[1] < gaps[2]


def test_probe_too_wide_for_the_grid_is_refused() -> None:
    wide = _SMALL._replace(semiangle_rad=0.05)
    with pytest.raises(PhysicsError, match=r"50.0 mrad is cut by the grid. Expected at most 33.4"):
        Multislice(wide, torch.zeros(1, 2), 1, 2.0)


def test_scan_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(PhysicsError, match=r"Expected \[P, 2\] .*got \[8, 8, 2\]. Next, flatten"):
        Multislice(_SMALL, torch.zeros(8, 8, 2), 1, 2.0)


def test_probe_stands_where_it_is_put() -> None:
    wave = probes(_SMALL, torch.tensor([[1.0, 2.5]]))[0]
    peak = divmod(int(wave.abs().argmax()), 16)
    assert peak == (4, 10)
    assert math.isclose(float(wave.abs().square().sum()), 1.0, rel_tol=1e-9)
