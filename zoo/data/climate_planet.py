"""The generator's planet: where land is and how high, and how its climate depends on latitude.

All snapshots, of any size and seed, are of this one planet. It is not the Earth: a flat southern
continent and random land stand for it, so that surface pressure, heights and temperatures have the
Earth's distributions. Profiles are set to the statistics in `zoo.data.climate_channels`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from zoo.data.climate_noise import COARSE, at_time, fine_noise, refine, smooth_spectra

_PLANET = 20181001


class Planet(NamedTuple):
    """[H, W] float32 each: share of land 0 .. 1, height of the ground in m."""

    land: np.ndarray
    height_m: np.ndarray


@lru_cache(maxsize=2)
def planet(shape: tuple[int, int]) -> Planet:
    """Land and its height on a regular grid from pole to pole."""
    rng = np.random.default_rng(_PLANET)
    spectra = smooth_spectra(rng, 2, 60.0, 4.0), smooth_spectra(rng, 2, 18.0, 3.0)
    shift = np.zeros(COARSE[0])
    continents, ridges = (at_time(each, each, 0.0, shift) for each in spectra)
    continents, ridges = refine(continents, shape), refine(ridges, shape)
    latitude = np.linspace(-90.0, 90.0, shape[0], dtype=np.float32)[:, None]
    # Land prefers the northern middle latitudes, and no continent lies off the southern one.
    level = continents[0] - 0.85 + 0.7 * np.exp(-(((latitude - 48.0) / 30.0) ** 2))
    level -= 1.2 * np.exp(-(((latitude + 52.0) / 13.0) ** 2))
    level += 4.0 * _step((-latitude - 71.0 + 3.0 * continents[1]) / 2.0)
    level += 0.1 * fine_noise(rng, shape)
    land = _step(level / 0.06)
    mountains = np.maximum(ridges[0] - 0.1, 0.0) ** 1.6 * 1250.0 + 220.0
    ice = 2900.0 * _step((-latitude - 74.0) / 2.5) * (1.0 + 0.12 * ridges[1])
    height_m = land * (mountains * _step((latitude + 66.0) / 2.0) + ice)
    height_m *= 1.0 + 0.08 * fine_noise(rng, shape)
    return Planet(land, np.clip(height_m, 0.0, 4900.0))


def _step(x: np.ndarray) -> np.ndarray:
    """0 to 1, smoothly."""
    return (0.5 * (1.0 + np.tanh(x))).astype(np.float32)
