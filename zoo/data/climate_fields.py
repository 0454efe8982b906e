"""Synthetic snapshots of a climate model: sixteen channels, each a function of seed and index.

Not a model of the atmosphere: zonal profiles, smooth random fields, vortices and moist filaments,
put together so that channels have the units, ranges, moments and tails of CAM5's (see
`zoo.data.climate_channels`), depend on each other with the right signs, and events are as rare.
Labels are not drawn: `zoo.data.climate_labels` computes them from the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from zoo.data.climate_channels import CHANNELS
from zoo.data.climate_events import (
    STEP_H,
    Filament,
    Vortex,
    add_filament,
    add_vortex,
    draw_filaments,
    draw_vortices,
)
from zoo.data.climate_grid import regular_grid
from zoo.data.climate_noise import COARSE, at_time, fine_noise, refine, smooth_spectra
from zoo.data.climate_planet import planet

N_FILAMENTS = 13
VORTEX_RATE = 0.6
_LARGE, _SMALL = 4, 5


@dataclass(frozen=True, eq=False)
class Weather:
    """What a sequence's snapshots share.

    Attributes:
        season: -1 (southern summer) to 1 (northern).
        large, small: pairs of spectra, [fields, H, W // 2 + 1], of long and of short waves.
        fine: [H, W] of waves that the coarse grid has not.
    """

    season: float
    large: tuple[np.ndarray, np.ndarray]
    small: tuple[np.ndarray, np.ndarray]
    fine: np.ndarray
    vortices: tuple[Vortex, ...]
    filaments: tuple[Filament, ...]


@lru_cache(maxsize=2)
def weather(seed: int, sequence: int, shape: tuple[int, int]) -> Weather:
    """The weather of a sequence; the same large scales on every grid."""
    rng = np.random.default_rng([seed, sequence])
    season = float(np.cos(rng.uniform(0.0, 2.0 * np.pi)))
    return Weather(
        season,
        (smooth_spectra(rng, _LARGE, 34.0, 4.5), smooth_spectra(rng, _LARGE, 34.0, 4.5)),
        (smooth_spectra(rng, _SMALL, 12.0, 2.6), smooth_spectra(rng, _SMALL, 12.0, 2.6)),
        vortices=tuple(draw_vortices(rng, VORTEX_RATE, season)),
        filaments=tuple(draw_filaments(rng, N_FILAMENTS)),
        fine=fine_noise(np.random.default_rng([seed, sequence, 1]), shape),
    )


def make_fields(seed: int, sequence: int, step: int, shape: tuple[int, int]) -> np.ndarray:
    """One snapshot, [H, W, 16] float32 in the order and units of `CHANNELS`.

    Args:
        sequence, step: the snapshot is `step * 3` hours into this sequence.
    """
    now = weather(seed, sequence, shape)
    hours = STEP_H * step
    fields = _base(now, hours, shape)
    grid = regular_grid(*shape)
    for filament in now.filaments:
        add_filament(fields, grid, filament, hours)
    for vortex in now.vortices:
        add_vortex(fields, grid, vortex, hours)
    _complete(fields, shape, now.season)
    out = np.empty((*shape, len(CHANNELS)), dtype=np.float32)
    for number, name in enumerate(CHANNELS):
        out[..., number] = fields[name]
    return out


def _base(now: Weather, hours: float, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Profiles and eddies, before events."""
    coarse_latitude = np.linspace(-90.0, 90.0, COARSE[0])
    # The flow carries eddies: to the east in middle latitudes, to the west in the tropics.
    speed = 14.0 * np.exp(-(((np.abs(coarse_latitude) - 45.0) / 20.0) ** 2)) - 4.0
    angle = hours / 60.0
    large = at_time(*now.large, angle, speed * hours / 24.0)
    small = at_time(*now.small, 2.0 * angle, speed * hours / 24.0)
    u, v = _winds_of(large[0])
    u, v, stream, warm, high, wet, damp, shower, gust, calm, spot = refine(
        np.concatenate([[u, v], large, small]), shape
    )
    fine = np.roll(now.fine, round(hours * shape[1] / 360.0 / 2.0), axis=1)
    latitude = np.linspace(-90.0, 90.0, shape[0], dtype=np.float32)[:, None]
    hemisphere = np.tanh(latitude / 12.0)
    season, world = now.season, planet(shape)
    storms = _bell(latitude, 47.0, 20.0) + _bell(latitude, -50.0, 20.0)
    swing = 1.0 - world.land

    t = latitude - 6.0 * season
    fields: dict[str, np.ndarray] = {}
    humid = np.exp(0.14 * wet + 0.12 * damp + 0.05 * fine - 0.014)
    dry_land = 1.0 - 0.22 * world.land * _bell(np.abs(latitude), 25.0, 18.0)
    moist = 42.0 * np.cos(np.radians(t * 0.98)).clip(0.0) ** 2.4 + 6.0 * _bell(t, 2.0, 9.0)
    moist = moist * (1.0 - 0.36 * _bell(np.abs(t), 30.0, 10.0))
    fields["TMQ"] = (moist * dry_land * humid + 0.4) * np.exp(-world.height_m / 2600.0)

    zonal = 8.0 * storms - 6.8 * _bell(latitude, 0.0, 17.0) - 1.5 * _bell(latitude, -84.0, 12.0)
    fields["U850"] = zonal + u * (2.6 + 6.4 * storms) + 2.0 * gust + 0.8 * fine
    fields["V850"] = v * (2.6 + 7.0 * storms) + 2.0 * calm + 0.8 * np.roll(fine, 31, axis=0)
    drag = 0.84 - 0.3 * world.land
    trade = 5.0 * _bell(np.abs(latitude), 14.0, 12.0) * swing
    fields["UBOT"] = drag * fields["U850"] - trade + 2.0 * gust - 1.0
    fields["VBOT"] = (
        drag * (fields["V850"] + 0.3 * hemisphere * fields["U850"]) - trade * hemisphere * 0.6
    ) + 2.2 * calm

    subtropics = _bell(np.abs(latitude), 32.0, 14.0)
    fields["PSL"] = (
        101250.0 + 900.0 * subtropics - 750.0 * _bell(latitude, 62.0, 14.0)
        - 3900.0 * _bell(latitude, -63.0, 13.0)
        + hemisphere * stream * (120.0 + 1250.0 * storms) + 130.0 * calm
    )  # fmt: skip

    cosine = np.cos(np.radians(latitude))
    summer = season * hemisphere
    fields["T500"] = (
        229.0 + 39.0 * np.cos(np.radians(t * 0.9)).clip(0.0) ** 1.7 + 5.0 * summer * (1 - cosine)
        + (0.6 + 3.2 * storms) * (0.7 * warm + 0.6 * hemisphere * stream) + 0.3 * spot
    )  # fmt: skip
    fields["T200"] = (
        215.8 - 10.5 * (1.0 - cosine) ** 2 + 18.0 * summer * (1.0 - cosine) ** 1.2
        + (0.8 + 3.0 * storms) * (0.8 * high - 0.5 * hemisphere * stream) + 0.3 * spot
    )  # fmt: skip
    fields["Z200"] = (
        10560.0 + 1870.0 * np.cos(np.radians(t * 0.88)).clip(0.0) ** 1.55
        + 130.0 * summer * (1.0 - cosine)
        + (15.0 + 190.0 * storms) * hemisphere * (0.8 * stream + 0.3 * warm)
    )  # fmt: skip

    fields["PRECT"] = _rain(latitude, t, shower, damp, fine, fields["TMQ"], storms)
    fields["TREFHT"], fields["TS"] = _temperatures(
        latitude, summer, world.land, world.height_m, warm, spot, fine, storms
    )
    return fields


def _winds_of(stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] twice, each of deviation 1: the rotational wind of a stream function."""
    u = -np.gradient(stream, axis=0)
    latitude = np.linspace(-90.0, 90.0, COARSE[0])
    cosine = np.cos(np.radians(latitude)).clip(0.25)[:, None]
    v = (np.roll(stream, -1, axis=1) - np.roll(stream, 1, axis=1)) / (2.0 * cosine)
    return u / u.std(), v / v.std()


def _rain(latitude, t, shower, damp, fine, tmq, storms):
    """Log-normal, more where it is moist."""
    zone = 1.9 * _bell(t, 3.0, 8.0) + 0.9 * storms - 1.4 * _bell(np.abs(latitude), 24.0, 9.0)
    exponent = (
        -20.55 + zone + 1.25 * shower + 0.75 * damp + 0.5 * fine + 0.055 * np.minimum(tmq, 45.0)
    )
    return np.exp(exponent - 1.2 * np.exp(-tmq / 3.0)).astype(np.float32)


def _temperatures(latitude, summer, land, height_m, warm, spot, fine, storms):
    """Of the air at 2 m and of the surface."""
    absolute = np.abs(latitude)
    sea = (
        272.0
        + 29.0 * np.cos(np.radians(latitude)).clip(0.0) ** 2.0
        + 3.0 * summer * (absolute < 60)
    )
    ice = 0.5 * (1.0 + np.tanh((absolute - 68.0 + 6.0 * summer) / 4.0))
    sea = sea - ice * (16.0 - 14.0 * summer)
    ground = 256.0 + 45.0 * np.cos(np.radians(latitude)).clip(0.0) ** 1.5
    ground = ground + 17.0 * summer * np.sin(np.radians(absolute)) - 0.0068 * height_m
    ground = ground - 13.0 * _bell(latitude, -90.0, 18.0)
    air = (1.0 - land) * sea + land * ground + (0.5 + 2.6 * storms) * warm * (0.4 + 0.6 * land)
    surface = air + 0.8 + land * (2.2 * spot + 1.2 * fine - 0.6) - 1.5 * ice * (1.0 - land)
    return (air + 0.5 * spot).astype(np.float32), surface.astype(np.float32)


def _complete(fields: dict[str, np.ndarray], shape: tuple[int, int], season: float) -> None:
    """What follows from other fields: humidity, surface pressure and heights; ranges."""
    world = planet(shape)
    fields["TMQ"] = np.clip(fields["TMQ"], 0.03, 105.0)
    air = fields["TREFHT"]
    # The barometric formula, with the ground's own temperature 0.0065 K/m below.
    fields["PS"] = fields["PSL"] * np.exp(
        -9.81 * world.height_m / (287.0 * (air + 0.00325 * world.height_m))
    )
    vapour_pa = 611.2 * np.exp(17.67 * (air - 273.15) / (air - 29.65))
    moist = np.clip(0.74 + 0.004 * (fields["TMQ"] - 20.0) - 0.12 * world.land, 0.25, 0.98)
    fields["QREFHT"] = np.clip(0.622 * vapour_pa / fields["PS"] * moist, 1e-7, 0.03)
    fields["ZBOT"] = 0.2199 * air
    # CAM5 gives no height below its lowest level: over high ground that level stands for it.
    above = (fields["PSL"] - 1e5) / 11.0
    fields["Z1000"] = np.maximum(above, world.height_m + 0.9 * fields["ZBOT"])
    fields["PRECT"] = np.clip(fields["PRECT"], 0.0, 3.7e-5)


def _bell(x: np.ndarray, middle: float, width: float) -> np.ndarray:
    return np.exp(-np.square((x - middle) / width))
