"""Tropical cyclones in a single snapshot: the candidate criteria of TECA's detector.

S6 took its cyclones from `teca_tc_detect` (LBL-EESA/TECA), thresholds "super relaxed"; these are
the defaults here. TECA then keeps candidates that form a track of two days with 17 m/s. A
single snapshot has no track: the wind is asked for at once, and a latitude limit stands for the
rest, which drops the lows of the middle latitudes that do not keep a warm core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from zoo.data.climate_grid import EARTH_RADIUS_KM, Grid, distance_deg


@dataclass(frozen=True)
class CycloneRule:
    """Criteria for a candidate, and how its mask is cut out.

    Args:
        min_vorticity_per_s: cyclonic, at 850 hPa, the largest within `vorticity_window_deg`.
        min_depression_pa: of sea level pressure below its mean on a ring of `pressure_radius_deg`.
        min_warm_core_k: of (T200 + T500) / 2 above the ring of `warm_core_radius_deg`.
        min_thickness_m: of Z200 - Z1000 above the ring of `thickness_radius_deg`.
        max_separation_deg: of both cores from the lowest pressure; 1.5 grid steps, if that is more.
        min_wind_m_s: at 850 hPa, the largest within `pressure_radius_deg`.
        max_latitude_deg: of the lowest pressure.
        percentile: of each of `mask_channels` in the box; the radius of 17 m/s and `margin_deg` are
            half its side.
    """

    min_vorticity_per_s: float = 0.1e-4
    vorticity_window_deg: float = 7.74
    min_depression_pa: float = 100.0
    pressure_radius_deg: float = 5.0
    min_warm_core_k: float = 0.1
    warm_core_radius_deg: float = 5.0
    min_thickness_m: float = 50.0
    thickness_radius_deg: float = 4.0
    max_separation_deg: float = 2.0
    min_wind_m_s: float = 17.0
    max_latitude_deg: float = 35.0
    percentile: float = 93.0
    margin_deg: float = 6.6
    mask_channels: tuple[str, ...] = ("TMQ", "U850", "V850", "PRECT")


class Cyclone(NamedTuple):
    """Where the pressure is lowest; `radius_deg` is that of 17 m/s."""

    row: int
    column: int
    latitude_deg: float
    longitude_deg: float
    min_pressure_pa: float
    max_wind_m_s: float
    radius_deg: float


def relative_vorticity(u: np.ndarray, v: np.ndarray, grid: Grid) -> np.ndarray:
    """[H, W] 1/s, of winds in m/s; centred differences, zero on rows beyond 85 degrees."""
    phi = np.radians(grid.latitude_deg)[:, None]
    cosine = np.maximum(np.cos(phi), 1e-6)
    step_lambda = np.radians(grid.longitude_step_deg)
    if grid.is_periodic:
        dv = (np.roll(v, -1, axis=1) - np.roll(v, 1, axis=1)) / (2.0 * step_lambda)
    else:
        dv = np.gradient(v, step_lambda, axis=1)
    du = np.gradient(u * cosine, np.radians(grid.latitude_step_deg), axis=0)
    vorticity = (dv - du) / (cosine * EARTH_RADIUS_KM * 1e3)
    return np.where(np.abs(grid.latitude_deg)[:, None] > 85.0, 0.0, vorticity)


def find_cyclones(
    fields: Mapping[str, np.ndarray],
    grid: Grid,
    rule: CycloneRule = CycloneRule(),
) -> list[Cyclone]:
    """The cyclones of a snapshot, the strongest vorticity first.

    Args:
        fields: [H, W] of U850, V850, PSL, T200, T500, Z200 and Z1000, in SI units.
    """
    cyclonic = relative_vorticity(fields["U850"], fields["V850"], grid)
    cyclonic = cyclonic * np.sign(grid.latitude_deg)[:, None]
    rows, columns = np.nonzero(_peaks(cyclonic, grid, rule))
    order = np.argsort(-cyclonic[rows, columns], kind="stable")
    found: dict[tuple[int, int], Cyclone] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        cyclone = _candidate(fields, grid, rule, row, column)
        if cyclone is not None:
            found.setdefault((cyclone.row, cyclone.column), cyclone)
    return list(found.values())


def _peaks(cyclonic: np.ndarray, grid: Grid, rule: CycloneRule) -> np.ndarray:
    """Where cyclonic vorticity is largest in a window, within reach of the latitude limit."""
    steps_deg = (abs(grid.latitude_step_deg), grid.longitude_step_deg)
    size = [2 * max(round(rule.vorticity_window_deg / 2.0 / step), 1) + 1 for step in steps_deg]
    mode = ("nearest", "wrap" if grid.is_periodic else "nearest")
    highest = ndimage.maximum_filter(cyclonic, size=size, mode=mode)
    reach_deg = rule.max_latitude_deg + rule.pressure_radius_deg
    near = np.abs(grid.latitude_deg)[:, None] <= reach_deg
    return (cyclonic == highest) & (cyclonic >= rule.min_vorticity_per_s) & near


class _Box:
    """A window of the grid around a cell, with the distance of each of its cells from there."""

    def __init__(self, grid: Grid, row: int, column: int, radius_deg: float) -> None:
        latitude, longitude = grid.latitude_deg[row], grid.longitude_deg[column]
        self.cell_deg = max(abs(grid.latitude_step_deg), grid.longitude_step_deg)
        half_ring_deg = max(0.5, 0.6 * self.cell_deg)
        reach_deg = radius_deg + half_ring_deg
        half_width_deg = reach_deg / max(np.cos(np.radians(latitude)), 0.2)
        self.rows, self.columns = grid.window(row, column, reach_deg, half_width_deg)
        self.index = np.ix_(self.rows, self.columns)
        self.distance_deg = distance_deg(
            grid.latitude_deg[self.rows][:, None],
            grid.longitude_deg[self.columns][None],
            latitude,
            longitude,
        )
        self.inside = self.distance_deg <= radius_deg
        self.ring = np.abs(self.distance_deg - radius_deg) <= half_ring_deg

    def extreme(self, values: np.ndarray, sign: float) -> tuple[int, int, float]:
        """Row and column in the grid of the largest (or, with -1, smallest) value, and it."""
        signed = np.where(self.inside, sign * values, -np.inf)
        place = np.unravel_index(signed.argmax(), signed.shape)
        return int(self.rows[place[0]]), int(self.columns[place[1]]), float(values[place])


def _candidate(
    fields: Mapping[str, np.ndarray], grid: Grid, rule: CycloneRule, row: int, column: int
) -> Cyclone | None:
    near = _Box(grid, row, column, rule.pressure_radius_deg)
    row, column, pressure_pa = near.extreme(fields["PSL"][near.index], -1.0)
    if abs(grid.latitude_deg[row]) > rule.max_latitude_deg:
        return None
    around = _Box(grid, row, column, rule.pressure_radius_deg)
    wind = np.hypot(fields["U850"][around.index], fields["V850"][around.index])
    max_wind_m_s = float(wind[around.inside].max())
    depression_pa = fields["PSL"][around.index][around.ring].mean() - pressure_pa
    if max_wind_m_s < rule.min_wind_m_s or depression_pa < rule.min_depression_pa:
        return None
    cores = (
        ("T200", "T500", 0.5, 0.5, rule.warm_core_radius_deg, rule.min_warm_core_k),
        ("Z200", "Z1000", 1.0, -1.0, rule.thickness_radius_deg, rule.min_thickness_m),
    )
    for first, second, a, b, radius_deg, least in cores:
        box = _Box(grid, row, column, radius_deg)
        core = a * fields[first][box.index] + b * fields[second][box.index]
        if not _has_core(box, core, least, rule.max_separation_deg):
            return None
    return Cyclone(
        row,
        column,
        float(grid.latitude_deg[row]),
        float(grid.longitude_deg[column]),
        pressure_pa,
        max_wind_m_s,
        _radius_deg(around, wind, rule.min_wind_m_s),
    )


def _has_core(box: _Box, values: np.ndarray, least: float, max_separation_deg: float) -> bool:
    """The largest value lies near the middle, and so far above the ring."""
    close = box.distance_deg <= max(max_separation_deg, 1.5 * box.cell_deg)
    peak = values[box.inside].max()
    return bool(values[close].max() >= peak and peak - values[box.ring].mean() >= least)


def _radius_deg(box: _Box, wind: np.ndarray, least_m_s: float) -> float:
    """The largest distance at which the mean wind on a ring still reaches `least_m_s`."""
    width_deg = max(0.5, box.cell_deg)
    rings = (box.distance_deg[box.inside] / width_deg).astype(int)
    means = np.bincount(rings, wind[box.inside]) / np.maximum(np.bincount(rings), 1)
    strong = np.flatnonzero(means >= least_m_s)
    return float((strong[-1] + 0.5) * width_deg) if len(strong) else 0.5 * width_deg
