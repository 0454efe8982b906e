"""Connected pixels on a globe: blobs that go over the date line, their areas and boxes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from zoo.data.climate_grid import KM_PER_DEG, Grid, distance_deg

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


class Blob(NamedTuple):
    """Connected pixels: their number among the labels, cells, area, and the box around them.

    Attributes:
        rows, columns: [n] of its pixels.
        west_column, n_columns: of the box, which may go over the date line.
        meridional_km: the box's height.
        diagonal_km: between opposite corners of the box, along a great circle.
    """

    number: int
    rows: np.ndarray
    columns: np.ndarray
    west_column: int
    n_columns: int
    area_km2: float
    meridional_km: float
    diagonal_km: float


def components(
    mask: np.ndarray, is_periodic: bool, neighbours: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Numbers [H, W] int32 of connected pixels from 1 up (0: none), and how many there are.

    Args:
        is_periodic: the last column touches the first.
        neighbours: [3, 3] bool; the four nearest by default.
    """
    labels, n_blobs = ndimage.label(mask, neighbours)
    if not is_periodic or n_blobs < 2:
        return labels, n_blobs
    # The seam alone, three columns wide on both sides of it, says which numbers belong together.
    seam = np.concatenate([mask[:, -2:], mask[:, :2]], axis=1)
    joined, n_joined = ndimage.label(seam, neighbours)
    west, east = joined[:, 1], joined[:, 2]
    numbers = np.concatenate([labels[:, -1], labels[:, 0]])
    groups = np.concatenate([west, east])
    there = groups > 0
    links = coo_matrix(
        (np.ones(there.sum()), (numbers[there], n_blobs + groups[there])),
        shape=(n_blobs + n_joined + 1,) * 2,
    )
    _, merged = connected_components(links, directed=False)
    # Node 0, the background, comes first and is alone.
    _, compact = np.unique(merged[: n_blobs + 1], return_inverse=True)
    return compact[labels].astype(np.int32), int(compact.max())


def largest(mask: np.ndarray, neighbours: np.ndarray = EIGHT_NEIGHBOURS) -> np.ndarray:
    """The largest of the connected pieces of a box, the first of equals; empty stays empty."""
    labels, n_blobs = ndimage.label(mask, neighbours)
    if n_blobs < 2:
        return mask
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def blobs_of(labels: np.ndarray, n_blobs: int, grid: Grid) -> list[Blob]:
    """What `components` has numbered, in the order of the numbers."""
    inside = np.flatnonzero(labels)
    numbers = labels.ravel()[inside]
    inside = inside[np.argsort(numbers, kind="stable")]
    ends = np.cumsum(np.bincount(numbers, minlength=n_blobs + 1))
    return [
        _blob(number, *np.divmod(inside[ends[number - 1] : ends[number]], grid.shape[1]), grid)
        for number in range(1, n_blobs + 1)
    ]


def _blob(number: int, rows: np.ndarray, columns: np.ndarray, grid: Grid) -> Blob:
    west, n_columns = _columns_spanned(columns, grid)
    latitudes = grid.latitude_deg[[rows.min(), rows.max()]]
    width_deg = (n_columns - 1) * grid.longitude_step_deg
    return Blob(
        number,
        rows,
        columns,
        west,
        n_columns,
        float(grid.cell_area_km2[rows].sum()),
        float(abs(np.diff(latitudes)[0]) * KM_PER_DEG),
        float(distance_deg(latitudes[0], 0.0, latitudes[1], width_deg) * KM_PER_DEG),
    )


def _columns_spanned(columns: np.ndarray, grid: Grid) -> tuple[int, int]:
    """The box's first column and width: on a closed grid the complement of the largest gap."""
    there = np.unique(columns)
    if not grid.is_periodic:
        return int(there[0]), int(there[-1] - there[0]) + 1
    gaps = np.diff(np.append(there, there[0] + grid.shape[1]))
    after = int(gaps.argmax())
    return int(there[(after + 1) % len(there)]), int(grid.shape[1] - gaps[after]) + 1
