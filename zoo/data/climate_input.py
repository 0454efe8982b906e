"""Snapshots out of files that were not made for training: HDF5 of CAM5's layout, or NetCDF.

Whatever a file's own order, rows come from south to north and columns from 0 degrees to the east,
as networks are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from zoo.data.climate_files import LABELS, schema_of
from zoo.data.climate_grid import Grid, regular_grid
from zoo.data.source import open_hdf5
from zoo.errors import ChannelError, DataFileError, GridError, UserError

_LATITUDES, _LONGITUDES = ("lat", "latitude"), ("lon", "longitude")
_TIMES = ("time", "valid_time")
NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf")


class Snapshots(Protocol):
    """An open file; use it as a context manager.

    Attributes:
        names: of the fields that it has.
        times: one text a snapshot; numbers where the file has no times.
    """

    path: Path
    grid: Grid
    names: tuple[str, ...]
    times: tuple[str, ...]

    def read(self, step: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """[H, W] float32 by name.

        Raises:
            ChannelError: the file lacks one. DataFileError: it cannot be read.
        """
        ...

    def labels(self, step: int) -> np.ndarray | None:
        """[H, W] uint8; None where the file has none."""
        ...

    def __enter__(self) -> Snapshots: ...

    def __exit__(self, *_: Any) -> None: ...


def open_snapshots(path: Path, variables: Mapping[str, str] | None = None) -> Snapshots:
    """A file's snapshots; what it is, its name's ending says.

    Args:
        variables: names in a NetCDF file, by channel, where they differ: {TMQ: tcwv}; one level of
            a field with levels is `NAME@LEVEL`: {T500: t@500}.

    Raises:
        DataFileError: or one of its kinds: missing, damaged, or of another layout.
        UserError: it is NetCDF, and xarray or netCDF4 is not installed.
    """
    if path.suffix.lower() in NETCDF_SUFFIXES:
        return NetCDFSnapshots(path, variables)
    return HDF5Snapshots(path)


class _Oriented:
    """Turns [H, W] of a file to rows from the south and columns from 0 degrees."""

    def __init__(self, latitude_deg: np.ndarray, longitude_deg: np.ndarray) -> None:
        self.flip = len(latitude_deg) > 1 and latitude_deg[0] > latitude_deg[-1]
        latitude_deg = latitude_deg[::-1] if self.flip else latitude_deg
        longitude_deg = np.where(longitude_deg < 0.0, longitude_deg + 360.0, longitude_deg)
        self.shift = int(np.argmin(longitude_deg)) if len(longitude_deg) else 0
        rising = bool((np.diff(np.roll(longitude_deg, -self.shift)) > 0).all())
        # A region over the prime meridian stays as it is, counted on beyond 360.
        if not rising or not self._closes(np.roll(longitude_deg, -self.shift)):
            self.shift = 0
            longitude_deg = np.degrees(np.unwrap(np.radians(longitude_deg)))
        self.grid = Grid(latitude_deg, np.roll(longitude_deg, -self.shift))

    @staticmethod
    def _closes(longitude_deg: np.ndarray) -> bool:
        steps = np.diff(longitude_deg)
        return bool(len(steps) and steps.max() < 1.5 * np.median(steps))

    def __call__(self, field: np.ndarray) -> np.ndarray:
        field = field[::-1] if self.flip else field
        return np.ascontiguousarray(np.roll(field, -self.shift, axis=1) if self.shift else field)


class HDF5Snapshots:
    """`climate/data` of [H, W, C] or [N, H, W, C]: see `open_snapshots`.

    `climate/latitude` and `climate/longitude` are taken where the file has them; CAM5's grid from
    pole to pole elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        schema = schema_of(path)
        self.names = schema["fields"].channels
        self._file = open_hdf5(path)
        climate = self._file["climate"]
        self._data = climate["data"]
        self._many = self._data.ndim == 4
        self._labels = next((climate[name] for name in LABELS if name in climate), None)
        height, width = self._data.shape[-3:-1]
        n_steps = len(self._data) if self._many else 1
        self.times = tuple(str(step) for step in range(n_steps))
        try:
            self._oriented = _Oriented(*_coordinates(climate, height, width))
        except GridError as error:
            self._file.close()
            raise GridError(f"{path}: {error}") from error
        self.grid = self._oriented.grid

    def __enter__(self) -> HDF5Snapshots:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, step: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        _require_names(self.path, self.names, names)
        try:
            data = self._data[step] if self._many else self._data[()]
        except OSError as error:
            raise DataFileError(
                f"{self.path}: snapshot {step} cannot be read ({error}). Next, copy the file again."
            ) from error
        places = [self.names.index(name) for name in names]
        return {
            name: self._oriented(data[..., place].astype(np.float32))
            for name, place in zip(names, places, strict=True)
        }

    def labels(self, step: int) -> np.ndarray | None:
        if self._labels is None:
            return None
        label = self._labels[step] if self._many else self._labels[()]
        return self._oriented(label[0] if label.ndim == 3 else label).astype(np.uint8)


class NetCDFSnapshots:
    """Variables over latitude and longitude, with or without time: see `open_snapshots`."""

    def __init__(self, path: Path, variables: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._dataset = _open_netcdf(path)
        try:
            self._variables = self._find(dict(variables or {}))
            self.names = tuple(self._variables)
            latitude, longitude = (
                np.asarray(self._coordinate(names).values, dtype=np.float64)
                for names in (_LATITUDES, _LONGITUDES)
            )
            self._oriented = _Oriented(latitude, longitude)
        except GridError as error:
            self._dataset.close()
            raise GridError(f"{path}: {error}") from error
        except BaseException:
            self._dataset.close()
            raise
        self.grid = self._oriented.grid
        self._time = next((name for name in _TIMES if name in self._dataset.dims), None)
        self.times = self._times()

    def __enter__(self) -> NetCDFSnapshots:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dataset.close()

    def read(self, step: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        _require_names(self.path, self.names, names)
        return {name: self._oriented(self._field(name, step)) for name in names}

    def labels(self, step: int) -> np.ndarray | None:
        return None

    def _field(self, name: str, step: int) -> np.ndarray:
        variable = self._variables[name]
        if self._time in variable.dims:
            variable = variable.isel({self._time: step})
        variable = variable.squeeze()
        latitude, longitude = (self._coordinate(each).name for each in (_LATITUDES, _LONGITUDES))
        if set(variable.dims) != {latitude, longitude}:
            raise DataFileError(
                f"{self.path}: {name} expected the axes ({latitude}, {longitude}), with or without "
                f"time, got {variable.dims}. Next, choose a level: "
                f"variables={{{name}: {variable.name}@LEVEL}}."
            )
        return variable.transpose(latitude, longitude).values.astype(np.float32)

    def _find(self, chosen: dict[str, str]) -> dict[str, Any]:
        found = {str(name): self._dataset[name] for name in self._dataset.data_vars}
        for channel, address in chosen.items():
            name, _, level = address.partition("@")
            if name not in found:
                raise ChannelError(
                    f"{self.path}: expected the variable {name} for {channel}, got "
                    f"{sorted(map(str, self._dataset.data_vars))}. Next, correct variables."
                )
            found[channel] = self._level(self._dataset[name], level) if level else found[name]
        return found

    def _level(self, variable: Any, level: str) -> Any:
        axes = [axis for axis in variable.dims if axis not in (*_LATITUDES, *_LONGITUDES, *_TIMES)]
        for axis in axes:
            place = np.flatnonzero(np.isclose(variable[axis].values, float(level)))
            if len(place):
                return variable.isel({axis: int(place[0])})
        there = {str(axis): variable[axis].values.tolist() for axis in axes}
        raise ChannelError(
            f"{self.path}: {variable.name} has no level {level}, but {there}. Next, correct "
            "variables."
        )

    def _coordinate(self, names: Sequence[str]) -> Any:
        for name in names:
            if name in self._dataset.coords or name in self._dataset.variables:
                return self._dataset[name]
        raise GridError(
            f"expected a coordinate {' or '.join(names)}, got "
            f"{sorted(map(str, self._dataset.coords))}. Next, rename it in the file."
        )

    def _times(self) -> tuple[str, ...]:
        if self._time is None:
            return ("0",)
        values = self._dataset[self._time].values
        if np.issubdtype(values.dtype, np.datetime64):
            return tuple(np.datetime_as_string(values, unit="s").tolist())
        return tuple(str(value) for value in values)


def _open_netcdf(path: Path) -> Any:
    xarray = require_xarray()
    if not path.is_file():
        raise DataFileError(f"no data file {path}. Next, correct files.")
    try:
        return xarray.open_dataset(path, engine="netcdf4")
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"{path} cannot be opened. Expected a NetCDF file, got: {error}. Next, copy it again."
        ) from error


def require_xarray() -> Any:
    """xarray, with netCDF4 to read and write by."""
    try:
        import netCDF4  # noqa: F401
        import xarray
    except ImportError as error:
        raise UserError(
            f"NetCDF needs the packages xarray and netCDF4 ({error}). Next, `pip install xarray "
            "netCDF4`, or `pip install '.[climate]'` from the checkout."
        ) from error
    return xarray


def _coordinates(climate: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    if "latitude" not in climate or "longitude" not in climate:
        grid = regular_grid(height, width)
        return grid.latitude_deg, grid.longitude_deg
    latitude, longitude = (
        np.asarray(climate[name], dtype=np.float64) for name in ("latitude", "longitude")
    )
    if (len(latitude), len(longitude)) != (height, width):
        raise GridError(
            f"expected latitudes and longitudes of a grid of {(height, width)}, got "
            f"{(len(latitude), len(longitude))}. Next, correct them."
        )
    return latitude, longitude


def _require_names(path: Path, there: Sequence[str], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in there]:
        raise ChannelError(
            f"{path}: expected the channels {list(names)}, without {missing} in {list(there)}. "
            "Next, add them to the file; or, for NetCDF, say what they are called there: "
            "variables={TMQ: tcwv}."
        )
