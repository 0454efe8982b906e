"""The generator's channels: profiles over latitude, and what eddies and land add to them.

The numbers are set so that the channels' moments and percentiles are those of
`zoo.data.climate_channels`; they stand for no physics of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Fields = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Air:
    """What the channels of a snapshot are made of, float32.

    Attributes:
        latitude: [H, 1] degrees. season: -1 (southern summer) to 1.
        land, height_m: [H, W] of the planet.
        u, v: [H, W], the wind of `stream`; the others are independent fields of deviation 1.
        fine: [H, W], waves that the coarse grid has not.
    """

    latitude: np.ndarray
    season: float
    land: np.ndarray
    height_m: np.ndarray
    u: np.ndarray
    v: np.ndarray
    stream: np.ndarray
    warm: np.ndarray
    high: np.ndarray
    wet: np.ndarray
    damp: np.ndarray
    shower: np.ndarray
    gust: np.ndarray
    calm: np.ndarray
    spot: np.ndarray
    fine: np.ndarray

    @cached_property
    def hemisphere(self) -> np.ndarray:
        """-1 in the south to 1 in the north."""
        return np.tanh(self.latitude / 12.0)

    @cached_property
    def storms(self) -> np.ndarray:
        """1 in the middle latitudes, where most eddies are."""
        return _bell(self.latitude, 47.0, 20.0) + _bell(self.latitude, -50.0, 20.0)

    @cached_property
    def from_warmest(self) -> np.ndarray:
        """Degrees from the thermal equator, which follows the season."""
        return self.latitude - 6.0 * self.season

    @cached_property
    def summer(self) -> np.ndarray:
        """1 in the summer's hemisphere, -1 in the winter's, at a solstice."""
        return self.season * self.hemisphere

    def warmth(self, width: float, power: float) -> np.ndarray:
        """1 at the thermal equator, falling polewards."""
        return np.cos(np.radians(self.from_warmest * width)).clip(0.0) ** power


def moisture(air: Air) -> Fields:
    """TMQ, with a drier belt in the subtropics: most of a river's length stands out from it."""
    humid = np.exp(0.14 * air.wet + 0.12 * air.damp + 0.05 * air.fine - 0.014)
    dry_land = 1.0 - 0.22 * air.land * _bell(np.abs(air.latitude), 25.0, 18.0)
    moist = 42.0 * air.warmth(0.98, 2.4) + 6.0 * _bell(air.from_warmest, 2.0, 9.0)
    moist = moist * (1.0 - 0.36 * _bell(np.abs(air.from_warmest), 30.0, 10.0))
    return {"TMQ": (moist * dry_land * humid + 0.4) * np.exp(-air.height_m / 2600.0)}


def winds(air: Air) -> Fields:
    """Westerlies, trades and eddies at 850 hPa; slower, and turned to low pressure, below."""
    zonal = 8.0 * air.storms - 6.8 * _bell(air.latitude, 0.0, 17.0)
    zonal = zonal - 1.5 * _bell(air.latitude, -84.0, 12.0)
    u = zonal + air.u * (2.6 + 6.4 * air.storms) + 2.0 * air.gust + 0.8 * air.fine
    v = air.v * (2.6 + 7.0 * air.storms) + 2.0 * air.calm + 0.8 * np.roll(air.fine, 31, axis=0)
    drag = 0.84 - 0.3 * air.land
    trade = 5.0 * _bell(np.abs(air.latitude), 14.0, 12.0) * (1.0 - air.land)
    inwards = drag * (v + 0.3 * air.hemisphere * u) - trade * air.hemisphere * 0.6
    return {
        "U850": u,
        "V850": v,
        "UBOT": drag * u - trade + 2.0 * air.gust - 1.0,
        "VBOT": inwards + 2.2 * air.calm,
    }


def pressure(air: Air) -> Fields:
    """PSL: belts, and eddies in balance with the wind."""
    belts = 101250.0 + 900.0 * _bell(np.abs(air.latitude), 32.0, 14.0)
    belts = belts - 750.0 * _bell(air.latitude, 62.0, 14.0)
    belts = belts - 3900.0 * _bell(air.latitude, -63.0, 13.0)
    eddies = air.hemisphere * air.stream * (120.0 + 1250.0 * air.storms)
    return {"PSL": belts + eddies + 130.0 * air.calm}


def upper_air(air: Air) -> Fields:
    """T500, T200 and Z200: highs are warm below and cold aloft."""
    polar = 1.0 - np.cos(np.radians(air.latitude))
    stream = air.hemisphere * air.stream
    t500 = 229.0 + 39.0 * air.warmth(0.9, 1.7) + 5.0 * air.summer * polar
    t200 = 215.8 - 10.5 * polar**2 + 18.0 * air.summer * polar**1.2
    z200 = 10560.0 + 1870.0 * air.warmth(0.88, 1.55) + 130.0 * air.summer * polar
    return {
        "T500": t500 + (0.6 + 3.2 * air.storms) * (0.7 * air.warm + 0.6 * stream) + 0.3 * air.spot,
        "T200": t200 + (0.8 + 3.0 * air.storms) * (0.8 * air.high - 0.5 * stream) + 0.3 * air.spot,
        "Z200": z200
        + (15.0 + 190.0 * air.storms) * (0.8 * stream + 0.3 * air.hemisphere * air.warm),
    }


def rain(air: Air, tmq: np.ndarray) -> Fields:
    """PRECT: log-normal, more where it is moist."""
    zone = 1.9 * _bell(air.from_warmest, 3.0, 8.0) + 0.9 * air.storms
    zone = zone - 1.4 * _bell(np.abs(air.latitude), 24.0, 9.0)
    weather = 1.25 * air.shower + 0.75 * air.damp + 0.5 * air.fine
    exponent = -20.55 + zone + weather + 0.055 * np.minimum(tmq, 45.0)
    return {"PRECT": np.exp(exponent - 1.2 * np.exp(-tmq / 3.0)).astype(np.float32)}


def temperatures(air: Air) -> Fields:
    """TREFHT and TS: sea with ice, and land that is colder with height and hotter in summer."""
    absolute, height = np.abs(air.latitude), air.height_m
    cosine = np.cos(np.radians(air.latitude)).clip(0.0)
    ice = 0.5 * (1.0 + np.tanh((absolute - 68.0 + 6.0 * air.summer) / 4.0))
    sea = 272.0 + 29.0 * cosine**2.0 + 3.0 * air.summer * (absolute < 60)
    sea = sea - ice * (16.0 - 14.0 * air.summer)
    ground = 256.0 + 45.0 * cosine**1.5 + 17.0 * air.summer * np.sin(np.radians(absolute))
    ground = ground - 0.0068 * height - 13.0 * _bell(air.latitude, -90.0, 18.0)
    eddies = (0.5 + 2.6 * air.storms) * air.warm * (0.4 + 0.6 * air.land)
    below = (1.0 - air.land) * sea + air.land * ground + eddies
    surface = below + 0.8 + air.land * (2.2 * air.spot + 1.2 * air.fine - 0.6)
    surface = surface - 1.5 * ice * (1.0 - air.land)
    return {
        "TREFHT": (below + 0.5 * air.spot).astype(np.float32),
        "TS": surface.astype(np.float32),
    }


def complete(fields: Fields, air: Air) -> None:
    """Add what follows from other fields, after events: PS, QREFHT, ZBOT, Z1000; keep ranges."""
    fields["TMQ"] = np.clip(fields["TMQ"], 0.03, 105.0)
    fields["PRECT"] = np.clip(fields["PRECT"], 0.0, 3.7e-5)
    below, height = fields["TREFHT"], air.height_m
    # The barometric formula, with 0.0065 K/m between the ground and the sea.
    fields["PS"] = fields["PSL"] * np.exp(-9.81 * height / (287.0 * (below + 0.00325 * height)))
    vapour_pa = 611.2 * np.exp(17.67 * (below - 273.15) / (below - 29.65))
    moist = np.clip(0.74 + 0.004 * (fields["TMQ"] - 20.0) - 0.12 * air.land, 0.25, 0.98)
    fields["QREFHT"] = np.clip(0.622 * vapour_pa / fields["PS"] * moist, 1e-7, 0.03)
    fields["ZBOT"] = 0.2199 * below
    # CAM5 gives no height below its lowest level: over high ground that level stands for it.
    above = (fields["PSL"] - 1e5) / 11.0
    fields["Z1000"] = np.maximum(above, height + 0.9 * fields["ZBOT"])


def _bell(x: np.ndarray, middle: float, width: float) -> np.ndarray:
    return np.exp(-np.square((x - middle) / width))
