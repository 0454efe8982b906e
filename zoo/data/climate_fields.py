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
from zoo.data.climate_profiles import (
    Air,
    complete,
    moisture,
    pressure,
    rain,
    temperatures,
    upper_air,
    winds,
)

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
    air = _air(now, hours, shape)
    fields = moisture(air) | winds(air) | pressure(air) | upper_air(air) | temperatures(air)
    fields |= rain(air, fields["TMQ"])
    grid = regular_grid(*shape)
    for filament in now.filaments:
        add_filament(fields, grid, filament, hours)
    for vortex in now.vortices:
        add_vortex(fields, grid, vortex, hours)
    complete(fields, air)
    out = np.empty((*shape, len(CHANNELS)), dtype=np.float32)
    for number, name in enumerate(CHANNELS):
        out[..., number] = fields[name]
    return out


def _air(now: Weather, hours: float, shape: tuple[int, int]) -> Air:
    """Eddies as they are after so many hours."""
    coarse_latitude = np.linspace(-90.0, 90.0, COARSE[0])
    # The flow carries eddies: to the east in middle latitudes, to the west in the tropics.
    speed = 14.0 * np.exp(-(((np.abs(coarse_latitude) - 45.0) / 20.0) ** 2)) - 4.0
    angle = hours / 60.0
    large = at_time(*now.large, angle, speed * hours / 24.0)
    small = at_time(*now.small, 2.0 * angle, speed * hours / 24.0)
    eddies = refine(np.concatenate([_winds_of(large[0]), large, small]), shape)
    latitude = np.linspace(-90.0, 90.0, shape[0], dtype=np.float32)[:, None]
    fine = np.roll(now.fine, round(hours * shape[1] / 360.0 / 2.0), axis=1)
    return Air(latitude, now.season, *planet(shape), *eddies, fine)


def _winds_of(stream: np.ndarray) -> np.ndarray:
    """[2, H, W] of deviation 1 each: the rotational wind of a stream function."""
    u = -np.gradient(stream, axis=0)
    latitude = np.linspace(-90.0, 90.0, COARSE[0])
    cosine = np.cos(np.radians(latitude)).clip(0.25)[:, None]
    v = (np.roll(stream, -1, axis=1) - np.roll(stream, 1, axis=1)) / (2.0 * cosine)
    return np.stack([u / u.std(), v / v.std()])
