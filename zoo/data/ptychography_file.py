"""A ptychographic scan in one HDF5 file.

Layout: root attributes `layout`, `layout_version`, `licence` and `source`; datasets `counts`
[P, d, d] of whole numbers, their centre at [d / 2, d / 2], `probe` [d, d] complex64 and
`positions_px` [P, 2] float32, row and column of the probe's first pixel on the object, from 0 up.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from zoo.errors import DataFileError, PhysicsError
from zoo.files import written_whole
from zoo.physics.ptychography import object_shape_for, require_positions, require_probe

LAYOUT = "zoo.ptychography"
LAYOUT_VERSION = 1


class Scan(NamedTuple):
    """Patterns of a scan and how they were taken.

    Attributes:
        counts: [P, d, d] float32.
        probe: [d, d] complex64, of the mean pattern's total intensity: an object of ones then
            explains the mean count.
        positions_px: [P, 2] float32.
    """

    counts: Tensor
    probe: Tensor
    positions_px: Tensor

    @property
    def object_shape(self) -> tuple[int, int]:
        """The smallest object, (H, W), that the probe stays on."""
        return object_shape_for(self.positions_px, self.probe.shape[-1])


def read_scan(path: Path) -> Scan:
    """Read and check a scan.

    Raises:
        DataFileError: the file is missing, damaged or foreign.
        PhysicsError: patterns, probe and positions do not belong together.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            got = (file.attrs.get("layout"), file.attrs.get("layout_version"))
            if got != (LAYOUT, LAYOUT_VERSION):
                raise _error(path, f"layout and version {got}")
            counts, probe, positions_px = (
                torch.from_numpy(file[name][...].astype(dtype))
                for name, dtype in (
                    ("counts", np.float32),
                    ("probe", np.complex64),
                    ("positions_px", np.float32),
                )
            )
    except (OSError, KeyError, TypeError) as error:
        raise _error(path, str(error)) from error
    _require_scan(path, counts, probe, positions_px)
    power = counts.sum((1, 2)).mean() / probe.abs().square().sum()
    return Scan(counts, probe * power.sqrt(), positions_px)


def write_scan(
    path: Path, counts: np.ndarray, probe: np.ndarray, positions_px: np.ndarray, **attributes: str
) -> None:
    """Write a scan, whole or not at all; whole numbers below 65536 are compressed without loss."""
    with written_whole(path) as fresh, h5py.File(fresh, "w", locking=False) as file:
        file.attrs.update(layout=LAYOUT, layout_version=LAYOUT_VERSION, **attributes)
        file.create_dataset(
            "counts",
            data=counts.astype(np.uint16),
            chunks=(32, *counts.shape[1:]),
            compression="gzip",
            compression_opts=9,
            shuffle=True,
        )
        file["probe"] = probe.astype(np.complex64)
        file["positions_px"] = positions_px.astype(np.float32)


def _require_scan(path: Path, counts: Tensor, probe: Tensor, positions_px: Tensor) -> None:
    require_probe(probe)
    if counts.ndim != 3 or counts.shape[1:] != probe.shape:
        raise PhysicsError(
            f"{path}: the patterns do not fit the probe. Expected counts "
            f"{['P', *probe.shape]}, got {list(counts.shape)}. Next, crop or bin the patterns."
        )
    if len(positions_px) != len(counts):
        raise PhysicsError(
            f"{path}: expected a position for each of {len(counts)} patterns, got "
            f"{len(positions_px)}. Next, drop the patterns that have none."
        )
    if not counts.isfinite().all() or counts.min() < 0:
        raise PhysicsError(
            f"{path}: expected counts that are finite and not negative. Next, mask dead pixels "
            "with 0."
        )
    require_positions(positions_px, len(probe), object_shape_for(positions_px, len(probe)))


def _error(path: Path, got: str) -> DataFileError:
    return DataFileError(
        f"{path} is not a usable scan. Expected an HDF5 file of layout {LAYOUT!r} version "
        f"{LAYOUT_VERSION}; got: {got}. Next, write it with zoo.data.ptychography_file.write_scan, "
        "or name another one with data.path=FILE.h5."
    )
