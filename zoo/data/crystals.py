"""Random crystals and what a scanned electron probe records of them.

Sample `index` is a function of (size, seed, index) alone: any rank or worker makes the same one.
Each is a crystal of its own, so that splitting by index splits by crystal.

A crystal has a two-dimensional lattice of two atoms a cell, repeated along the beam and turned at
random, and is cut to the box, whose edges are joined: the grid of the multislice is periodic. An
atom's projected potential is a Gaussian of its electron scattering power and of thermal width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.physics.electron import Microscope
from zoo.physics.multislice import Multislice
from zoo.physics.noise import poisson_counts

# Forward scattering factors f_e(0) in Å: P. A. Doyle and P. S. Turner, Acta Cryst. A24, 390 (1968).
SCATTERING_A = {
    "C": 2.509,
    "O": 1.983,
    "Al": 5.889,
    "Si": 5.828,
    "S": 5.161,
    "Ti": 8.776,
    "Fe": 7.165,
    "Cu": 5.600,
    "Ga": 7.108,
    "As": 7.320,
    "Sr": 13.109,
    "Ag": 8.671,
    "Sn": 10.859,
    "Au": 10.573,
}
# h^2 / (2 pi m e): the volume integral of an atom's potential for f_e(0) = 1 Å (Kirkland 5.9).
_VA2 = 47.878
# Root mean square displacement of an atom and what its potential's own width adds.
_ATOM_SIGMA_A = 0.35
# Ranges that crystals are drawn from.
_LATTICE_A = (2.6, 4.0)
_LATTICE_ANGLE_RAD = (math.radians(60.0), math.radians(120.0))
_SECOND_ATOM = (0.3, 0.7)
# Waves that are propagated at once: 2^22 complex numbers are 32 MiB.
_WAVES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class CbedSize:
    """How large a data set of convergent-beam electron diffraction is, and its microscope.

    Attributes:
        scan_side: the probe stands on a square grid of so many positions a side, over the box.
        side_px: pixels a side of the potential and of each pattern.
        n_slices: the box's depth; a slab fills `min_slices` of them or more, drawn at random.
        max_tilt_rad: of the crystal against the beam.
        electrons_per_pattern: dose; patterns are then Poisson counts over dose. None: no noise.
        n_train, n_val, n_test: crystals; indices are dealt in this order.
        samples_per_shard: of the files that `zoo.data.generate` writes.
    """

    scan_side: int
    side_px: int
    pixel_A: float  # noqa: N815 -- Å
    n_slices: int
    min_slices: int
    slice_thickness_A: float  # noqa: N815
    energy_eV: float  # noqa: N815
    semiangle_rad: float
    max_tilt_rad: float
    electrons_per_pattern: float | None
    n_train: int
    n_val: int
    n_test: int
    samples_per_shard: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_slices <= self.n_slices:
            raise UserError(
                f"min_slices does not fit. Expected 1 to n_slices={self.n_slices}, got "
                f"{self.min_slices}. Next, set min_slices={self.n_slices}."
            )

    @property
    def microscope(self) -> Microscope:
        return Microscope(self.side_px, self.pixel_A, self.energy_eV, self.semiangle_rad)

    @property
    def cbed_shape(self) -> tuple[int, int, int]:
        return (self.scan_side**2, self.side_px, self.side_px)

    @property
    def potential_shape(self) -> tuple[int, int, int]:
        return (1, self.side_px, self.side_px)


class CbedSample(NamedTuple):
    """A crystal's patterns and the potential they are of.

    Attributes:
        cbed: [scan_side^2, side_px, side_px] float32; each pattern's centre is at [side_px / 2,
            side_px / 2], and its sum about 1 (see `zoo.physics.multislice.Multislice`).
        potential: [1, side_px, side_px] float32, V Å: projected along the whole slab.
    """

    cbed: Tensor
    potential: Tensor


def make_sample(size: CbedSize, seed: int, index: int) -> CbedSample:
    """Sample `index` of the data set of this size and seed, the same wherever it is made.

    >>> from zoo.data.crystals import SIZES
    >>> sample = make_sample(SIZES["tiny"], seed=0, index=7)
    >>> tuple(sample.cbed.shape), tuple(sample.potential.shape)
    ((64, 32, 32), (1, 32, 32))
    """
    generator = np.random.default_rng((seed, index))
    slices = _slices(size, generator)
    cbed = _patterns(size, slices.float())
    if size.electrons_per_pattern is not None:
        electrons = torch.Generator().manual_seed(int(generator.integers(2**63)))
        cbed = poisson_counts(cbed, size.electrons_per_pattern, electrons)
        cbed /= size.electrons_per_pattern
    return CbedSample(cbed, slices.sum(0, keepdim=True).float())


def scan_positions_A(size: CbedSize) -> Tensor:  # noqa: N802
    """Where the probe stands, [scan_side^2, 2] float64, row by row."""
    step_A = size.side_px * size.pixel_A / size.scan_side  # noqa: N806
    along = step_A * torch.arange(size.scan_side, dtype=torch.float64)
    return torch.cartesian_prod(along, along)


@torch.no_grad()
def _patterns(size: CbedSize, slices: Tensor) -> Tensor:
    at_once = max(1, _WAVES_AT_ONCE // size.side_px**2)
    return torch.cat(
        [
            Multislice(size.microscope, some, size.n_slices, size.slice_thickness_A)(slices[None])[
                0
            ]
            for some in scan_positions_A(size).split(at_once)
        ]
    )


def _slices(size: CbedSize, generator: np.random.Generator) -> Tensor:
    """Projected potential of each slice of a random slab, [n_slices, side_px, side_px], V Å."""
    lattice = _lattice_A(generator)
    second = generator.uniform(*_SECOND_ATOM, size=2) @ lattice
    elements = generator.choice(list(SCATTERING_A), size=2, replace=False)
    weights = [_VA2 * SCATTERING_A[element] for element in elements]
    box_A = size.side_px * size.pixel_A  # noqa: N806
    sites = _lattice_points_A(lattice, box_A) + generator.uniform(0.0, _LATTICE_A[1], size=2)
    # One layer a slice, or the two atoms in turns.
    period = int(generator.integers(1, 3))
    filled = int(generator.integers(size.min_slices, size.n_slices + 1))
    step_A = size.slice_thickness_A * _tilt(size, generator)  # noqa: N806
    atoms = (sites, sites + second)
    slices = torch.zeros(size.n_slices, size.side_px, size.side_px, dtype=torch.float64)
    for s in range(filled):
        for atom in range(2) if period == 1 else (s % 2,):
            slices[s] += _projected(size, atoms[atom] + s * step_A, weights[atom])
    return slices


def _lattice_A(generator: np.random.Generator) -> np.ndarray:  # noqa: N802
    """Two lattice vectors as rows, turned at random."""
    a, b = generator.uniform(*_LATTICE_A, size=2)
    turn, angle = generator.uniform(0.0, 2.0 * np.pi), generator.uniform(*_LATTICE_ANGLE_RAD)
    directions = np.array([turn, turn + angle])
    return np.array([a, b])[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1)


def _lattice_points_A(lattice: np.ndarray, box_A: float) -> np.ndarray:  # noqa: N802, N803
    """Enough points, [n, 2], to fill the box wherever the origin in it lies."""
    height_A = _LATTICE_A[0] * math.sin(_LATTICE_ANGLE_RAD[0])  # noqa: N806
    reach = math.ceil((math.sqrt(2.0) * box_A + 2.0 * _LATTICE_A[1]) / height_A)
    steps = np.arange(-reach, reach + 1)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2) @ lattice


def _tilt(size: CbedSize, generator: np.random.Generator) -> np.ndarray:
    """Sideways shift of the lattice for each Å of depth, [2]."""
    angle, turn = generator.uniform(0.0, size.max_tilt_rad), generator.uniform(0.0, 2.0 * np.pi)
    return math.tan(angle) * np.array([np.cos(turn), np.sin(turn)])


def _projected(size: CbedSize, sites_A: np.ndarray, weight_VA2: float) -> Tensor:  # noqa: N803
    """Gaussians at those sites that lie in the box, [side_px, side_px] float64, V Å."""
    box_A = size.side_px * size.pixel_A  # noqa: N806
    inside = torch.from_numpy(sites_A[((sites_A >= 0.0) & (sites_A < box_A)).all(axis=1)])
    along = size.pixel_A * torch.arange(size.side_px, dtype=torch.float64)
    # The nearest image of each site in the periodic box.
    distance = (along[:, None, None] - inside + box_A / 2) % box_A - box_A / 2
    profile = torch.exp(-0.5 * (distance / _ATOM_SIGMA_A) ** 2)
    profile /= math.sqrt(2.0 * math.pi) * _ATOM_SIGMA_A
    return weight_VA2 * profile[..., 0] @ profile[..., 1].T


def _size(
    scan_side: int,
    side_px: int,
    pixel_A: float,  # noqa: N803
    slices: tuple[int, int],
    splits: tuple[int, int, int],
) -> CbedSize:
    """200 keV, 20 mrad, slices of 2 Å; shards of about 16 to 512 MiB."""
    sample_nbytes = 4 * side_px**2 * (scan_side**2 + 1)
    return CbedSize(
        scan_side,
        side_px,
        pixel_A,
        min_slices=slices[0],
        n_slices=slices[1],
        slice_thickness_A=2.0,
        energy_eV=200e3,
        semiangle_rad=0.02,
        max_tilt_rad=0.01,
        electrons_per_pattern=None,
        n_train=splits[0],
        n_val=splits[1],
        n_test=splits[2],
        samples_per_shard=max(1, 2**24 // sample_nbytes),
    )


# tiny: an experiment for two CPU cores. paper: the shapes and number of samples of Laanait et al.
# 2019 (arXiv 1909.11150), (1024, 512, 512) -> (1, 512, 512): 1 GiB a sample, 70 TB.
SIZES: dict[str, CbedSize] = {
    "tiny": _size(8, 32, 0.25, (4, 4), (400, 32, 64)),
    "small": _size(16, 64, 0.25, (4, 8), (2000, 100, 200)),
    "medium": _size(16, 128, 0.2, (8, 16), (8000, 400, 800)),
    "large": _size(32, 256, 0.15, (16, 32), (20000, 1000, 2000)),
    "paper": _size(32, 512, 0.125, (25, 50), (60000, 3500, 3500)),
}


def size_named(name: str) -> CbedSize:
    """The preset of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SIZES:
        raise UserError(f"no size {name!r}. Expected one of {', '.join(SIZES)}; next, size=tiny.")
    return SIZES[name]
