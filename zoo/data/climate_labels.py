"""Masks of tropical cyclones and atmospheric rivers, computed from the fields of a snapshot.

The rules are those by which the labels of S6 (Kurth et al. 2018) and of DeepCAM were made
(azrael417/ClimDeepLearn), on any regular grid, with blobs and boxes that go over the date line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zoo.data.climate_blobs import blobs_of, components, largest
from zoo.data.climate_channels import CYCLONE, RIVER
from zoo.data.climate_cyclones import Cyclone, CycloneRule, find_cyclones
from zoo.data.climate_grid import Grid
from zoo.data.values import not_finite
from zoo.errors import BadSampleError, ChannelError, GridError

RIVER_CHANNELS = ("TMQ",)
CYCLONE_CHANNELS = ("U850", "V850", "PSL", "T200", "T500", "Z200", "Z1000", "TMQ", "PRECT")


@dataclass(frozen=True)
class RiverRule:
    """TMQ * (1 - exp(-lat^2 / (2 * 19^2))) above a threshold, in long and narrow blobs.

    Args:
        threshold_kg_m2: 24 for `labels_0`, 21 for `labels_1`.
        tropics_deg: width of the band around the equator that is damped.
        min_diagonal_km: of the box around a blob.
        max_width_km: area of a blob by the meridional length of its box. S6 computes areas with an
            Earth of 6170 km and lengths with one of 6371 km: max_width_km=1066 is its rule.
    """

    threshold_kg_m2: float = 24.0
    tropics_deg: float = 19.0
    min_diagonal_km: float = 1500.0
    max_width_km: float = 1000.0


def damping_of(latitude_deg: np.ndarray, tropics_deg: float = RiverRule.tropics_deg) -> np.ndarray:
    """[H]: 1 - exp(-lat^2 / (2 tropics^2)), by which the tropics' own humidity is taken out."""
    return 1.0 - np.exp(-np.square(latitude_deg) / (2.0 * tropics_deg**2))


LABELS_0, LABELS_1 = RiverRule(24.0), RiverRule(21.0)


def river_mask(tmq: np.ndarray, grid: Grid, rule: RiverRule = LABELS_0) -> np.ndarray:
    """[H, W] bool: pixels of atmospheric rivers.

    Args:
        tmq: [H, W] total precipitable water, kg/m2.
    """
    _require_fields({"TMQ": tmq}, RIVER_CHANNELS, grid)
    damping = damping_of(grid.latitude_deg, rule.tropics_deg)
    labels, n_blobs = components(tmq * damping[:, None] > rule.threshold_kg_m2, grid.is_periodic)
    kept = np.zeros(n_blobs + 1, dtype=bool)
    for blob in blobs_of(labels, n_blobs, grid):
        is_long = blob.diagonal_km > rule.min_diagonal_km
        kept[blob.number] = is_long and blob.area_km2 < rule.max_width_km * blob.meridional_km
    return kept[labels]


def cyclone_mask(
    fields: Mapping[str, np.ndarray],
    grid: Grid,
    rule: CycloneRule = CycloneRule(),  # noqa: B008
    cyclones: list[Cyclone] | None = None,
) -> np.ndarray:
    """[H, W] bool: in a box around each cyclone what exceeds a percentile of the box, in one piece.

    U850 and V850 are compared with their signs, as S6 did: only one flank of a vortex counts.

    Args:
        fields: [H, W] each, by the names of `CYCLONE_CHANNELS`, in SI units (TMQ in kg/m2).
        cyclones: those that `find_cyclones` gives, if they are known.
    """
    _require_fields(fields, CYCLONE_CHANNELS, grid)
    mask = np.zeros(grid.shape, dtype=bool)
    for cyclone in find_cyclones(fields, grid, rule) if cyclones is None else cyclones:
        half_deg = cyclone.radius_deg + rule.margin_deg
        rows, columns = grid.window(cyclone.row, cyclone.column, half_deg, half_deg)
        box = np.zeros((len(rows), len(columns)), dtype=bool)
        for name in rule.mask_channels:
            values = fields[name][np.ix_(rows, columns)]
            box |= largest(values > np.percentile(values, rule.percentile))
        mask[np.ix_(rows, columns)] |= largest(box)
    return mask


def label_snapshot(
    fields: Mapping[str, np.ndarray],
    grid: Grid,
    river: RiverRule = LABELS_0,
    cyclone: CycloneRule = CycloneRule(),  # noqa: B008
) -> np.ndarray:
    """[H, W] uint8: 0 background, 1 tropical cyclone, 2 atmospheric river; cyclones overwrite.

    Raises:
        ChannelError: a field is missing. GridError: it is of another shape than the grid.
        BadSampleError: it holds NaN or infinities.
    """
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[river_mask(_required(fields, "TMQ"), grid, river)] = RIVER
    labels[cyclone_mask(fields, grid, cyclone)] = CYCLONE
    return labels


def _required(fields: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in fields:
        raise ChannelError(
            f"the rules need the field {name}, got {sorted(fields)}. Next, add it to the file."
        )
    return fields[name]


def _require_fields(fields: Mapping[str, np.ndarray], names: tuple[str, ...], grid: Grid) -> None:
    for name in names:
        field = _required(fields, name)
        if field.shape != grid.shape:
            raise GridError(
                f"{name}: expected a field of {grid.shape} as the grid, got {field.shape}. Next, "
                "give the latitudes and longitudes of this field."
            )
        if wrong := not_finite(field):
            raise BadSampleError(
                f"{name}: expected {wrong}. Next, fill or cut what is missing: the rules compare "
                "neighbours."
            )
