"""A table of the events in a mask: where, how large, how strong, how long and wide."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.climate_blobs import EIGHT_NEIGHBOURS, Blob, blobs_of, components
from zoo.data.climate_channels import RIVER
from zoo.data.climate_grid import KM_PER_DEG, Grid, distance_deg
from zoo.files import written_whole

EVENT_CHANNELS = ("U850", "V850", "PSL", "TMQ")


@dataclass(frozen=True)
class Event:
    """Connected pixels (8 neighbours) of one class.

    Attributes:
        latitude_deg, longitude_deg: of the centre of area.
        max_wind_m_s: at 850 hPa. min_pressure_pa: at sea level. NaN where the file has no such
            field.
        length_km: of rivers, between the two pixels that are farthest apart along a great circle
            (found in two sweeps). width_km: area by length. NaN for cyclones.
    """

    file: str
    time: str
    event: str
    latitude_deg: float
    longitude_deg: float
    area_km2: float
    n_pixels: int
    max_wind_m_s: float
    min_pressure_pa: float
    max_tmq_kg_m2: float
    length_km: float
    width_km: float


def events_of(
    mask: np.ndarray,
    grid: Grid,
    class_names: Sequence[str],
    fields: Mapping[str, np.ndarray],
    file: str = "",
    time: str = "",
) -> list[Event]:
    """The events of a snapshot, class by class, the largest first.

    Args:
        mask: [H, W] classes, 0 the background.
        fields: those of `EVENT_CHANNELS` that there are, [H, W] in SI units.
    """
    events: list[Event] = []
    for number in range(1, len(class_names)):
        labels, n_blobs = components(mask == number, grid.is_periodic, EIGHT_NEIGHBOURS)
        found = [
            _event(blob, number, grid, class_names, fields, file, time)
            for blob in blobs_of(labels, n_blobs, grid)
        ]
        events += sorted(found, key=lambda event: -event.area_km2)
    return events


def _event(
    blob: Blob,
    number: int,
    grid: Grid,
    class_names: Sequence[str],
    fields: Mapping[str, np.ndarray],
    file: str,
    time: str,
) -> Event:
    place = blob.rows, blob.columns
    latitude, longitude = _centre(blob, grid)
    wind = np.nan
    if "U850" in fields and "V850" in fields:
        wind = float(np.hypot(fields["U850"][place], fields["V850"][place]).max())
    length_km = _length_km(blob, grid) if number == RIVER else np.nan
    return Event(
        file,
        time,
        class_names[number],
        latitude,
        longitude,
        blob.area_km2,
        len(blob.rows),
        wind,
        float(fields["PSL"][place].min()) if "PSL" in fields else np.nan,
        float(fields["TMQ"][place].max()) if "TMQ" in fields else np.nan,
        length_km,
        blob.area_km2 / length_km if length_km > 0.0 else np.nan,
    )


def _centre(blob: Blob, grid: Grid) -> tuple[float, float]:
    """The mean of positions on the sphere, weighted by area."""
    phi = np.radians(grid.latitude_deg[blob.rows])
    lam = np.radians(grid.longitude_deg[blob.columns])
    area = grid.cell_area_km2[blob.rows]
    x, y, z = (
        float((area * part).sum())
        for part in (np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi))
    )
    return float(np.degrees(np.arctan2(z, np.hypot(x, y)))), float(
        np.degrees(np.arctan2(y, x)) % 360
    )


def _length_km(blob: Blob, grid: Grid) -> float:
    latitude, longitude = grid.latitude_deg[blob.rows], grid.longitude_deg[blob.columns]
    end = 0
    for _ in range(2):
        distance = distance_deg(latitude, longitude, latitude[end], longitude[end])
        end = int(distance.argmax())
    return float(distance[end] * KM_PER_DEG)


def write_events(path: Path, events: Sequence[Event]) -> None:
    """A CSV of all events, whole or not at all; empty cells where nothing is known."""
    names = [field.name for field in dataclasses.fields(Event)]
    with written_whole(path) as fresh, fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for event in events:
            row = dataclasses.asdict(event)
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value
