"""Grids of latitude and longitude: areas, distances, and windows that cross the date line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zoo.errors import GridError

EARTH_RADIUS_KM = 6371.0
KM_PER_DEG = EARTH_RADIUS_KM * np.pi / 180.0


@dataclass(frozen=True, eq=False)
class Grid:
    """Rows of constant latitude, columns of constant longitude, both evenly spaced.

    Args:
        latitude_deg: [H] float64, rising or falling, within -90 .. 90 (rows at the poles may be).
        longitude_deg: [W] float64, rising, less than once around.

    Raises:
        GridError: they are none of that.
    """

    latitude_deg: np.ndarray
    longitude_deg: np.ndarray

    def __post_init__(self) -> None:
        for name in ("latitude_deg", "longitude_deg"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        _require_even("latitude", self.latitude_deg)
        _require_even("longitude", self.longitude_deg)
        if np.abs(self.latitude_deg).max() > 90.0 + 1e-6:
            worst = self.latitude_deg[np.abs(self.latitude_deg).argmax()]
            raise _error("latitude", "degrees within -90 .. 90", f"{worst:g}")
        if self.longitude_step_deg <= 0:
            raise _error("longitude", "rising values", f"steps of {self.longitude_step_deg:g}")
        if self.shape[1] * self.longitude_step_deg > 360.0 + 0.1 * self.longitude_step_deg:
            first, last = self.longitude_deg[[0, -1]]
            raise _error(
                "longitude", "each meridian once", f"{first:g} .. {last:g} (drop the last column)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.latitude_deg), len(self.longitude_deg)

    @cached_property
    def latitude_step_deg(self) -> float:
        """Negative where latitudes fall."""
        return float(np.diff(self.latitude_deg).mean())

    @cached_property
    def longitude_step_deg(self) -> float:
        return float(np.diff(self.longitude_deg).mean())

    @cached_property
    def is_periodic(self) -> bool:
        """The first column is the last one's neighbour."""
        width = self.shape[1]
        return bool(abs(width * self.longitude_step_deg - 360.0) < 0.5 * self.longitude_step_deg)

    @cached_property
    def cell_area_km2(self) -> np.ndarray:
        """[H] float64: of one cell in each row; exact, so that rows at the poles have one."""
        width = np.radians(self.longitude_step_deg)
        area = EARTH_RADIUS_KM**2 * width * zone_height(self.latitude_deg)
        area.flags.writeable = False
        return area

    def window(
        self, row: int, column: int, half_height_deg: float, half_width_deg: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of a box around a cell; over the date line where the grid closes."""
        n_rows = max(round(half_height_deg / abs(self.latitude_step_deg)), 1)
        n_columns = max(round(half_width_deg / self.longitude_step_deg), 1)
        height, width = self.shape
        rows = np.arange(max(row - n_rows, 0), min(row + n_rows + 1, height))
        if self.is_periodic:
            n_columns = min(n_columns, (width - 1) // 2)
            return rows, np.arange(column - n_columns, column + n_columns + 1) % width
        return rows, np.arange(max(column - n_columns, 0), min(column + n_columns + 1, width))


def regular_grid(height: int, width: int) -> Grid:
    """CAM5's: rows from pole to pole, columns from 0 degrees east.

    >>> regular_grid(768, 1152).longitude_deg[-1]
    np.float64(359.6875)
    """
    return Grid(np.linspace(-90.0, 90.0, height), np.arange(width) * (360.0 / width))


def zone_height(latitude_deg: np.ndarray) -> np.ndarray:
    """[H] evenly spaced -> [H]: of the zone of a unit sphere that each row stands for.

    A zone's area is proportional to it. Exact for rows at the poles too, whose zones end there.
    """
    half = abs(float(np.diff(latitude_deg).mean())) / 2.0
    upper = np.radians(np.minimum(latitude_deg + half, 90.0))
    lower = np.radians(np.maximum(latitude_deg - half, -90.0))
    return np.sin(upper) - np.sin(lower)


def distance_deg(
    latitude_deg: np.ndarray | float,
    longitude_deg: np.ndarray | float,
    other_latitude_deg: np.ndarray | float,
    other_longitude_deg: np.ndarray | float,
) -> np.ndarray:
    """Great-circle distance in degrees of arc (haversine); broadcasts."""
    phi, other_phi = np.radians(latitude_deg), np.radians(other_latitude_deg)
    half_lambda = np.radians(np.subtract(longitude_deg, other_longitude_deg)) / 2.0
    chord = np.sin((phi - other_phi) / 2.0) ** 2
    chord = chord + np.cos(phi) * np.cos(other_phi) * np.sin(half_lambda) ** 2
    return np.degrees(2.0 * np.arcsin(np.sqrt(np.clip(chord, 0.0, 1.0))))


def _require_even(name: str, values: np.ndarray) -> None:
    if values.ndim != 1 or len(values) < 4 or not np.isfinite(values).all():
        raise _error(name, "4 or more finite values along one axis", f"shape {values.shape}")
    steps = np.diff(values)
    if np.abs(steps - steps.mean()).max() > 0.05 * abs(steps.mean()):
        raise _error(name, "even steps", f"steps of {steps.min():g} to {steps.max():g}")


def _error(name: str, expected: str, got: str) -> GridError:
    return GridError(
        f"{name}: expected {expected}, got {got}. Next, put the file on a regular grid of latitude "
        "and longitude in degrees."
    )
