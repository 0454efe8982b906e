"""What abTEM computes for a crystal, and the file that keeps it for machines without abTEM.

`python -m tests.zoo.multislice_reference` writes the file anew (extra `microscopy`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from zoo.files import written_whole
from zoo.physics.electron import Microscope

PATH = Path(__file__).parent / "files" / "multislice_abtem.h5"
MICROSCOPE = Microscope(
    side_px=48, pixel_A=0.16270833, energy_eV=200e3, semiangle_rad=0.02, defocus_A=60.0
)
SLICE_THICKNESS_A = 1.9525


class Reference(NamedTuple):
    """slices: [S, H, W] V Å; positions_A: [P, 2]; patterns: [P, H, W]; abtem: its version."""

    slices: Tensor
    positions_A: Tensor  # noqa: N815
    patterns: Tensor
    abtem: str


def compute() -> Reference:
    """Strontium titanate, 2 x 2 x 10 cells along [001], four probe positions, by abTEM."""
    import abtem
    import ase

    side_A = MICROSCOPE.side_px * MICROSCOPE.pixel_A
    cell = ase.Atoms(
        "SrTiO3",
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]],
        cell=[side_A / 2] * 3,
        pbc=True,
    )
    positions_A = np.array([[0.0, 0.0], [0.7, 1.9], [2.6, 0.4], [3.3, 5.1]])
    with abtem.config.set({"precision": "float64"}):
        potential = abtem.Potential(
            cell * (2, 2, 10),
            gpts=MICROSCOPE.side_px,
            slice_thickness=SLICE_THICKNESS_A,
            parametrization="lobato",
            projection="infinite",
        ).build(lazy=False)
        probe = abtem.Probe(
            energy=MICROSCOPE.energy_eV,
            semiangle_cutoff=1e3 * MICROSCOPE.semiangle_rad,
            defocus=MICROSCOPE.defocus_A,
            soft=False,
        )
        probe.grid.match(potential)
        waves = probe.multislice(potential, scan=abtem.CustomScan(positions_A), lazy=False)
        patterns = waves.diffraction_patterns(max_angle=None, fftshift=True).array
    assert np.allclose(potential.slice_thickness, SLICE_THICKNESS_A), potential.slice_thickness
    return Reference(
        torch.from_numpy(np.asarray(potential.array)),
        torch.from_numpy(positions_A),
        torch.from_numpy(np.asarray(patterns)),
        abtem.__version__,
    )


def read() -> Reference:
    with h5py.File(PATH, "r", locking=False) as file:
        slices, positions, patterns = (
            torch.from_numpy(file[name][...]) for name in ("slices", "positions_A", "patterns")
        )
        return Reference(slices, positions, patterns, file.attrs["abtem"])


def write(reference: Reference) -> None:
    with written_whole(PATH) as fresh, h5py.File(fresh, "w") as file:
        file.attrs["abtem"] = reference.abtem
        file.attrs["made_by"] = "python -m tests.zoo.multislice_reference"
        # The slices of a unit cell repeat, which compression makes use of.
        for name in ("slices", "patterns"):
            array = getattr(reference, name).float().numpy()
            file.create_dataset(name, data=array, compression="gzip", shuffle=True)
        file["positions_A"] = reference.positions_A.numpy()


if __name__ == "__main__":
    write(compute())
    print(f"{PATH}: {PATH.stat().st_size} bytes")
