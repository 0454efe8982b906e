"""The rules for rivers and cyclones, on fields of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.data.climate_blobs import blobs_of, components
from zoo.data.climate_channels import CHANNELS, CYCLONE, RIVER
from zoo.data.climate_cyclones import find_cyclones
from zoo.data.climate_events import Vortex, add_vortex
from zoo.data.climate_fields import make_fields
from zoo.data.climate_grid import EARTH_RADIUS_KM, Grid, distance_deg, regular_grid
from zoo.data.climate_labels import LABELS_0, LABELS_1, cyclone_mask, label_snapshot, river_mask
from zoo.errors import BadSampleError, ChannelError, GridError

_GRID = regular_grid(181, 360)


def _stripe(rows: slice, columns: list[int], tmq: float = 40.0) -> np.ndarray:
    field = np.zeros(_GRID.shape)
    field[rows, columns] = tmq
    return field


def _calm(grid: Grid) -> dict[str, np.ndarray]:
    """An atmosphere at rest, the same everywhere."""
    values = {"PSL": 101000.0, "T200": 218.0, "T500": 265.0, "Z200": 12300.0, "Z1000": 100.0}
    return {name: np.full(grid.shape, values.get(name, 0.0)) for name in CHANNELS}


def test_a_long_narrow_blob_is_a_river_and_others_are_not() -> None:
    long_narrow = _stripe(slice(120, 145), [10, 11, 12, 13])
    assert river_mask(long_narrow, _GRID).sum() == 25 * 4
    assert not river_mask(_stripe(slice(120, 130), [10, 11, 12, 13]), _GRID).any(), "too short"
    assert not river_mask(_stripe(slice(120, 145), list(range(10, 40))), _GRID).any(), "too wide"
    assert not river_mask(_stripe(slice(85, 110), [10, 11, 12, 13]), _GRID).any(), "tropics damped"


def test_the_thresholds_are_those_of_labels_0_and_1() -> None:
    # At 55 degrees the damping is exp(-4.2): 1.5 per cent.
    field = _stripe(slice(135, 160), [10, 11, 12], tmq=23.0)
    assert not river_mask(field, _GRID, LABELS_0).any()
    assert river_mask(field, _GRID, LABELS_1).sum() == 25 * 3


def test_a_river_goes_over_the_date_line() -> None:
    field = _stripe(slice(120, 145), [358, 359, 0, 1])
    assert river_mask(field, _GRID).sum() == 25 * 4
    east_only = Grid(_GRID.latitude_deg, _GRID.longitude_deg[:350])
    assert river_mask(_stripe(slice(120, 145), [345, 346])[:, :350], east_only).sum() == 25 * 2


def test_blobs_are_measured_on_the_sphere() -> None:
    mask = np.zeros(_GRID.shape, dtype=bool)
    mask[130:141, 355:] = mask[130:141, :6] = True
    (blob,) = blobs_of(*components(mask, True), _GRID)
    assert (blob.west_column, blob.n_columns) == (355, 11)
    assert blob.meridional_km == pytest.approx(np.radians(10.0) * EARTH_RADIUS_KM)
    # The zone from 39.5 to 50.5 degrees, 11 degrees wide.
    zone = np.sin(np.radians(50.5)) - np.sin(np.radians(39.5))
    assert blob.area_km2 == pytest.approx(EARTH_RADIUS_KM**2 * np.radians(11.0) * zone)
    corner = distance_deg(40.0, -5.0, 50.0, 5.0)
    assert blob.diagonal_km == pytest.approx(np.radians(corner) * EARTH_RADIUS_KM)


def test_components_join_over_the_seam_as_neighbours_do() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[0, 0] = mask[1, 5] = mask[3, 0] = mask[3, 5] = True
    assert components(mask, False)[1] == 4
    labels, n_blobs = components(mask, True)
    assert n_blobs == 3
    assert labels[3, 0] == labels[3, 5] > 0
    assert components(mask, True, np.ones((3, 3), dtype=bool))[1] == 2


@pytest.mark.parametrize("latitude_deg", [17.0, -17.0])
def test_a_warm_vortex_is_a_cyclone_of_known_place_and_wind(latitude_deg: float) -> None:
    fields = _calm(_GRID)
    vortex = Vortex(latitude_deg, 359.0, 40.0, 120.0, 0.0)
    add_vortex(fields, _GRID, vortex, hours=12.0)
    (cyclone,) = find_cyclones(fields, _GRID)
    assert distance_deg(latitude_deg, 359.0, cyclone.latitude_deg, cyclone.longitude_deg) < 1.0
    # The radius of 120 km lies between two cells.
    assert 32.0 < cyclone.max_wind_m_s < 42.0
    assert 96000.0 < cyclone.min_pressure_pa < 99500.0
    mask = cyclone_mask(fields, _GRID, cyclones=[cyclone])
    # In a box of 13 to 22 degrees, at most four times 7 per cent.
    assert 40 < mask.sum() < 0.28 * 22**2
    assert mask[:, 0].any()
    assert mask[:, -1].any()


def test_a_cold_vortex_and_a_weak_one_are_none() -> None:
    cold = _calm(_GRID)
    add_vortex(cold, _GRID, Vortex(17.0, 100.0, 40.0, 120.0, 0.0), hours=12.0)
    cold["T500"] = 2.0 * 265.0 - cold["T500"]
    cold["T200"] = 2.0 * 218.0 - cold["T200"]
    assert find_cyclones(cold, _GRID) == []
    weak = _calm(_GRID)
    add_vortex(weak, _GRID, Vortex(17.0, 100.0, 15.0, 120.0, 0.0), hours=12.0)
    assert find_cyclones(weak, _GRID) == []


def test_labels_turn_with_the_globe() -> None:
    shape = (96, 144)
    # A snapshot with both: sequences 1 and 5 of this seed have a vortex.
    fields = make_fields(0, 5, 4, shape)
    grid = regular_grid(*shape)
    turned = np.roll(fields, 50, axis=1)
    labels, turned_labels = (
        label_snapshot({name: each[..., i] for i, name in enumerate(CHANNELS)}, grid)
        for each in (fields, turned)
    )
    assert {CYCLONE, RIVER} <= set(np.unique(labels))
    np.testing.assert_array_equal(np.roll(labels, 50, axis=1), turned_labels)


def test_a_grid_from_north_to_south_gives_the_same_rivers() -> None:
    tmq = make_fields(0, 2, 0, (96, 144))[..., 0]
    grid = regular_grid(96, 144)
    falling = Grid(grid.latitude_deg[::-1], grid.longitude_deg)
    mask = river_mask(tmq, grid)
    assert mask.any()
    np.testing.assert_array_equal(river_mask(tmq[::-1], falling)[::-1], mask)


def test_rows_at_the_poles_have_an_area() -> None:
    area = regular_grid(181, 360).cell_area_km2
    assert (area > 0.0).all()
    assert area.sum() * 360 == pytest.approx(4.0 * np.pi * EARTH_RADIUS_KM**2)


@pytest.mark.parametrize(
    ("latitude_deg", "longitude_deg", "message"),
    [
        (np.linspace(-95.0, 95.0, 20), np.arange(40) * 9.0, r"within -90 .. 90, got -95"),
        (np.linspace(-90.0, 90.0, 20), np.arange(41) * 9.0, "each meridian once, got 0 .. 360"),
        (np.linspace(-90.0, 90.0, 20) ** 3 / 8100, np.arange(40) * 9.0, "latitude: expected even"),
        (np.linspace(-90.0, 90.0, 20), -np.arange(40) * 9.0, "longitude: expected rising"),
    ],
)
def test_other_grids_are_named(
    latitude_deg: np.ndarray, longitude_deg: np.ndarray, message: str
) -> None:
    with pytest.raises(GridError, match=message):
        Grid(latitude_deg, longitude_deg)


def test_bad_fields_are_named() -> None:
    fields = _calm(_GRID)
    with pytest.raises(
        GridError, match=r"TMQ: expected a field of \(181, 360\) .* got \(90, 180\)"
    ):
        label_snapshot({**fields, "TMQ": np.zeros((90, 180))}, _GRID)
    fields["PSL"][3, 4] = np.nan
    with pytest.raises(BadSampleError, match="PSL: expected finite numbers, got 1 NaN"):
        label_snapshot(fields, _GRID)
    del fields["PSL"]
    with pytest.raises(ChannelError, match="need the field PSL"):
        label_snapshot(fields, _GRID)
