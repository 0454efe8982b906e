"""The sixteen channels of the CAM5 snapshots of S6 and DeepCAM, and what is known of their values.

Mean, minimum and maximum are those of DeepCAM's own statistics file (121,266 training snapshots;
`zoo/data/climate_stats`). That file has no usable spread (see `zoo.data.climate_statistics`):
standard deviations and percentiles are of the ClimateNet subset of the same model run, 2003-04.
"""

from __future__ import annotations

from typing import NamedTuple


class Channel(NamedTuple):
    """Name, unit, and moments and percentiles over pixels (not weighted by area)."""

    name: str
    unit: str
    description: str
    mean: float
    std: float
    minimum: float
    maximum: float
    p1: float
    p50: float
    p99: float


# fmt: off
TABLE: tuple[Channel, ...] = (
    Channel("TMQ", "kg/m2", "total precipitable water", 18.66, 15.7, 0.026, 109.0, 0.16, 16.2, 56.4),  # noqa: E501
    Channel("U850", "m/s", "zonal wind at 850 hPa", 1.570, 8.14, -88.3, 85.9, -14.1, 0.57, 24.7),
    Channel("V850", "m/s", "meridional wind at 850 hPa", 0.213, 6.31, -84.6, 89.4, -17.4, 0.42, 16.0),  # noqa: E501
    Channel("UBOT", "m/s", "zonal wind, lowest level", 0.116, 6.54, -78.6, 76.8, -13.1, -0.37, 18.2),  # noqa: E501
    Channel("VBOT", "m/s", "meridional wind, lowest level", 0.212, 5.86, -77.7, 80.5, -16.2, 0.56, 14.0),  # noqa: E501
    Channel("QREFHT", "kg/kg", "humidity at 2 m", 7.57e-3, 6.15e-3, 7.3e-12, 0.146, 9.1e-6, 6.7e-3, 2.01e-2),  # noqa: E501
    Channel("PS", "Pa", "surface pressure", 96593.0, 9764.0, 48331.0, 107250.0, 61043.0, 100755.0, 103022.0),  # noqa: E501
    Channel("PSL", "Pa", "sea level pressure", 100782.0, 1469.0, 87595.0, 112039.0, 96051.0, 101152.0, 103071.0),  # noqa: E501
    Channel("T200", "K", "temperature at 200 hPa", 213.0, 8.66, 183.6, 248.3, 191.7, 216.5, 227.5),
    Channel("T500", "K", "temperature at 500 hPa", 252.3, 12.7, 208.4, 286.0, 226.1, 256.6, 269.6),
    Channel("PRECT", "m/s", "precipitation rate", 3.00e-8, 1.61e-7, -7e-19, 3.73e-5, 0.0, 2.2e-9, 4.1e-7),  # noqa: E501
    Channel("TS", "K", "surface temperature", 278.5, 23.6, 109.6, 352.6, 207.0, 286.6, 305.0),
    Channel("TREFHT", "K", "temperature at 2 m", 278.1, 22.4, 94.2, 331.8, 210.3, 285.9, 303.2),
    Channel("Z1000", "m", "height of 1000 hPa", 474.5, 832.0, -0.38, 5726.0, 53.8, 142.0, 3643.0),
    Channel("Z200", "m", "height of 200 hPa", 11699.0, 646.0, 9952.0, 12905.0, 10315.0, 11943.0, 12508.0),  # noqa: E501
    Channel("ZBOT", "m", "height of the lowest level", 61.15, 4.87, 20.4, 71.7, 46.7, 62.8, 67.0),
)
# fmt: on

CHANNELS: tuple[str, ...] = tuple(channel.name for channel in TABLE)
"""In the order of the files."""
"""The subset that S6 trained on at Piz Daint."""

CLASS_NAMES = ("background", "tropical_cyclone", "atmospheric_river")
BACKGROUND, CYCLONE, RIVER = range(3)

CLASS_FREQUENCIES = (0.986268, 0.000457871, 0.0132743)
"""Shares of pixels of DeepCAM's training set (mlcommons/hpc, deepcam), by class."""
