"""The picture of a super-resolution run: crops of low resolution, bicubic, network and truth."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from zoo.files import written_whole

_COLUMN_INCH = 3.1
_DPI = 130


class CropRow(NamedTuple):
    """A row of the figure.

    Attributes:
        images: title -> [3, h, w] in [0, 1], from left to right; their sides in pixels may differ.
    """

    name: str
    images: dict[str, Tensor]


def save_comparison(path: Path, rows: list[CropRow], title: str) -> None:
    """Draw `rows` below each other and write a PNG, whole or not at all."""
    n_columns = max(len(row.images) for row in rows)
    size_inch = (_COLUMN_INCH * n_columns, (_COLUMN_INCH + 0.1) * len(rows) + 0.5)
    # A Figure of its own, not pyplot's: no global state, no display needed.
    figure = Figure(figsize=size_inch, dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(row, row_axes)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _draw_row(row: CropRow, axes: np.ndarray) -> None:
    axes[0].set_ylabel(row.name, fontsize=12)
    for axis, (title, image) in zip(axes, row.images.items(), strict=True):
        # Nearest: the pixels that the method produced, not those of a viewer's interpolation.
        axis.imshow(image.clamp(0.0, 1.0).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
