"""Vortices and moist filaments of the generator: where they are born, and how they go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from zoo.data.climate_grid import KM_PER_DEG, Grid, distance_deg

STEP_H = 3.0


class Vortex(NamedTuple):
    """A tropical cyclone at the middle of its sequence; it moves to the west and polewards."""

    latitude_deg: float
    longitude_deg: float
    max_wind_m_s: float
    radius_km: float
    phase: float


class Filament(NamedTuple):
    """A stretch of moist air from the subtropics polewards and to the east."""

    latitude_deg: float
    longitude_deg: float
    reach_deg: float
    span_deg: float
    width_km: float
    moisture_kg_m2: float
    bend_deg: float
    phase: float


def draw_vortices(rng: np.random.Generator, rate: float, season: float) -> list[Vortex]:
    """So many on average; most in the hemisphere where it is summer (`season` 1: the northern)."""
    vortices = []
    for _ in range(rng.poisson(rate)):
        north = rng.random() < 0.5 + 0.35 * season
        vortices.append(
            Vortex(
                (1.0 if north else -1.0) * rng.uniform(9.0, 27.0),
                rng.uniform(0.0, 360.0),
                rng.uniform(24.0, 48.0),
                rng.uniform(60.0, 140.0),
                rng.uniform(0.0, 2.0 * np.pi),
            )
        )
    return vortices


def draw_filaments(rng: np.random.Generator, n_filaments: int) -> list[Filament]:
    """Half of them in each hemisphere."""
    filaments = []
    for number in range(n_filaments):
        sign = 1.0 if number % 2 else -1.0
        filaments.append(
            Filament(
                sign * rng.uniform(23.0, 33.0),
                rng.uniform(0.0, 360.0),
                sign * rng.uniform(13.0, 26.0),
                rng.uniform(22.0, 48.0),
                rng.uniform(190.0, 330.0),
                rng.uniform(15.0, 27.0),
                rng.uniform(-4.0, 4.0),
                rng.uniform(0.0, 2.0 * np.pi),
            )
        )
    return filaments


def add_filament(
    fields: Mapping[str, np.ndarray], grid: Grid, filament: Filament, hours: float
) -> None:
    """Add moisture, rain and a wind along it to TMQ, PRECT, U850, V850, UBOT and VBOT."""
    west = filament.longitude_deg + 12.0 * hours / 24.0
    middle_deg = west + filament.span_deg / 2.0
    latitude = filament.latitude_deg + filament.reach_deg / 2.0
    row, column = _nearest(grid, latitude, middle_deg)
    rows, columns = grid.window(
        row, column, abs(filament.reach_deg) / 2.0 + 14.0, filament.span_deg / 2.0 + 8.0
    )
    along = _east_of(grid.longitude_deg[columns], west)[None] / filament.span_deg
    progress = np.clip(along, 0.0, 1.0)
    smooth = progress**2 * (3.0 - 2.0 * progress)
    bend = filament.bend_deg * np.sin(2.0 * np.pi * progress + filament.phase)
    axis_deg = filament.latitude_deg + filament.reach_deg * smooth + bend
    slope = filament.reach_deg * 6.0 * progress * (1.0 - progress) / filament.span_deg
    cosine = np.cos(np.radians(axis_deg))
    direction = np.hypot(1.0, slope / cosine)
    off_km = (grid.latitude_deg[rows][:, None] - axis_deg) * KM_PER_DEG / direction
    ends = 0.5 * (np.tanh((along + 0.02) * 14.0) - np.tanh((along - 1.02) * 14.0))
    profile = ends * np.exp(-np.square(off_km / filament.width_km) / 2.0)
    index = np.ix_(rows, columns)
    # Less water in colder air, further polewards.
    fields["TMQ"][index] += profile * filament.moisture_kg_m2 * (1.0 - 0.35 * progress)
    fields["PRECT"][index] += profile**2 * 1.1e-7 * (0.4 + progress)
    for u, v, speed in (("U850", "V850", 11.0), ("UBOT", "VBOT", 6.0)):
        fields[u][index] += speed * profile / direction
        fields[v][index] += speed * profile * (slope / cosine) / direction


def add_vortex(fields: Mapping[str, np.ndarray], grid: Grid, vortex: Vortex, hours: float) -> None:
    """Add a warm-cored vortex with spiral rain to all fields that a cyclone changes.

    The wind is that of Holland 1980 ("An analytic model of the wind and pressure profiles in
    hurricanes"), exponent 1.4; its radius at least 0.9 grid steps.
    """
    sign = 1.0 if vortex.latitude_deg > 0 else -1.0
    latitude = vortex.latitude_deg + sign * 2.0 * (hours / 24.0 - 0.5)
    longitude = vortex.longitude_deg - 4.5 * (hours / 24.0 - 0.5)
    row, column = _nearest(grid, latitude, longitude)
    rows, columns = grid.window(row, column, 14.0, 16.0)
    north = grid.latitude_deg[rows][:, None]
    east = _east_of(grid.longitude_deg[columns], longitude)[None]
    r_km = distance_deg(north, east, latitude, 0.0) * KM_PER_DEG
    angle = np.arctan2(north - latitude, east * np.cos(np.radians(latitude)))
    cell_km = max(grid.latitude_step_deg, grid.longitude_step_deg) * KM_PER_DEG
    radius_km = max(vortex.radius_km, 0.9 * cell_km)
    strength = vortex.max_wind_m_s * (0.9 + 0.1 * np.sin(vortex.phase + hours / 12.0))
    ratio = (radius_km / np.maximum(r_km, 1.0)) ** 1.4
    wind = strength * np.sqrt(ratio * np.exp(1.0 - ratio)) * np.exp(-((r_km / 1300.0) ** 2))
    core = np.exp(-np.square(r_km / (2.2 * radius_km + 120.0)))
    index = np.ix_(rows, columns)
    _add_winds(fields, index, wind, angle, sign)
    depth_pa = 1.15 * strength**2 * np.e / 1.4
    fields["PSL"][index] -= depth_pa * (1.0 - np.exp(-ratio)) * np.exp(-((r_km / 900.0) ** 2))
    fields["T500"][index] += 0.09 * strength * core
    fields["T200"][index] += 0.12 * strength * core
    fields["Z200"][index] += 3.0 * strength * core
    bands = 1.0 + 0.8 * np.cos(2.0 * angle + sign * r_km / 130.0 + vortex.phase)
    rain = np.exp(-r_km / (1.6 * radius_km + 60.0)) * bands
    fields["PRECT"][index] += 0.06e-6 * strength * rain
    fields["TMQ"][index] += 0.33 * strength * (core + 0.35 * rain)


def _add_winds(
    fields: Mapping[str, np.ndarray],
    index: tuple[np.ndarray, ...],
    wind: np.ndarray,
    angle: np.ndarray,
    sign: float,
) -> None:
    # At the ground slower, and 25 degrees inwards.
    for u, v, share, inwards_deg in (("U850", "V850", 1.0, 0.0), ("UBOT", "VBOT", 0.78, 25.0)):
        turned = angle + sign * (np.pi / 2.0 + np.radians(inwards_deg))
        fields[u][index] += share * wind * np.cos(turned)
        fields[v][index] += share * wind * np.sin(turned)


def _nearest(grid: Grid, latitude_deg: float, longitude_deg: float) -> tuple[int, int]:
    row = round((latitude_deg - grid.latitude_deg[0]) / grid.latitude_step_deg)
    column = round((longitude_deg % 360.0) / grid.longitude_step_deg)
    return int(np.clip(row, 0, grid.shape[0] - 1)), column % grid.shape[1]


def _east_of(longitude_deg: np.ndarray, origin_deg: float) -> np.ndarray:
    """Degrees to the east, -180 .. 180."""
    return (longitude_deg - origin_deg + 180.0) % 360.0 - 180.0
