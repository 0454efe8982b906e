"""Predicted masks in files, with their coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from zoo.data.climate_grid import Grid
from zoo.data.climate_input import require_xarray
from zoo.data.shards import write_error
from zoo.errors import UserError
from zoo.files import written_whole

FORMATS = ("h5", "nc")
_AXES = ("time", "latitude", "longitude")


def write_masks(
    path: Path, masks: np.ndarray, grid: Grid, times: Sequence[str], class_names: Sequence[str]
) -> None:
    """`mask` (time, latitude, longitude) as HDF5 or NetCDF, by the name's ending.

    Args:
        masks: [T, H, W] uint8 classes.

    Raises:
        UserError: NetCDF, and xarray or netCDF4 is not installed. DiskFullError, DataFileError: it
            cannot be written.
    """
    attributes = {
        "flag_values": np.arange(len(class_names), dtype=np.uint8),
        "flag_meanings": " ".join(class_names),
    }
    write = _write_netcdf if path.suffix == ".nc" else _write_hdf5
    try:
        with written_whole(path) as fresh:
            write(fresh, masks, grid, times, attributes)
    except OSError as error:
        raise write_error(path, error) from error


def require_format(name: str) -> None:
    """Raise UserError for a format that is unknown, or whose packages are missing."""
    if name not in FORMATS:
        raise UserError(f"format: expected {' or '.join(FORMATS)}, got {name!r}. Next, correct it.")
    if name == "nc":
        require_xarray()


def _write_hdf5(
    path: Path, masks: np.ndarray, grid: Grid, times: Sequence[str], attributes: dict[str, Any]
) -> None:
    with h5py.File(path, "w", locking=False) as file:
        file["mask"] = masks
        file["time"] = list(times)
        file["latitude"], file["longitude"] = grid.latitude_deg, grid.longitude_deg
        file["latitude"].attrs["units"] = "degrees_north"
        file["longitude"].attrs["units"] = "degrees_east"
        file["mask"].attrs.update(attributes)
        for axis, name in enumerate(_AXES):
            file[name].make_scale(name)
            file["mask"].dims[axis].attach_scale(file[name])


def _write_netcdf(
    path: Path, masks: np.ndarray, grid: Grid, times: Sequence[str], attributes: dict[str, Any]
) -> None:
    xarray = require_xarray()
    coordinates = {
        "time": list(times),
        "latitude": ("latitude", grid.latitude_deg, {"units": "degrees_north"}),
        "longitude": ("longitude", grid.longitude_deg, {"units": "degrees_east"}),
    }
    mask = xarray.Variable(_AXES, masks, attributes)
    dataset = xarray.Dataset({"mask": mask}, coordinates)
    dataset.to_netcdf(path, engine="netcdf4", encoding={"mask": {"zlib": True}})
