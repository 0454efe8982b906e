"""The picture of a segmentation run: fields, true mask and predicted mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from zoo.files import written_whole

_COLUMN_INCH = 4.2
_ROW_INCH = 2.4
_DPI = 130
# Background is clear: the map beneath shows.
_COLORS = ("#00000000", "#e4572e", "#2e86de", "#8cc152", "#f6bb42")
_CMAPS = {"TMQ": "cividis", "PSL": "viridis"}
_UNITS = {"TMQ": "kg/m2", "PSL": "Pa"}


class MapRow(NamedTuple):
    """A row of the figure.

    Attributes:
        fields: name -> [H, W], in physical units.
        truth, prediction: [H, W] classes; the truth may be unknown.
        latitude_deg: [H], of the rows.
        scores: shown over the prediction.
        longitude_deg: the map's western and eastern edge.
    """

    name: str
    fields: dict[str, Tensor]
    truth: Tensor | None
    prediction: Tensor
    latitude_deg: Sequence[float]
    scores: str
    longitude_deg: tuple[float, float] = (0.0, 360.0)


def save_comparison(path: Path, rows: list[MapRow], class_names: list[str], title: str) -> None:
    """Draw `rows` below each other and write a PNG, whole or not at all."""
    n_columns = len(rows[0].fields) + 2
    size_inch = (_COLUMN_INCH * n_columns + 0.6, _ROW_INCH * len(rows) + 1.1)
    # A Figure of its own, not pyplot's: no global state, no display needed.
    figure = Figure(figsize=size_inch, dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(figure, row, row_axes)
    patches = [
        Patch(facecolor=color, label=name.replace("_", " "))
        for name, color in zip(class_names[1:], _COLORS[1:], strict=False)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _draw_row(figure: Figure, row: MapRow, axes: Any) -> None:
    axes[0].set_ylabel(row.name, fontsize=9)
    for axis, (name, field) in zip(axes, row.fields.items(), strict=False):
        low, high = np.quantile(field.numpy(), (0.002, 0.998))
        shown = _draw(axis, row, field, cmap=_CMAPS.get(name, "viridis"), vmin=low, vmax=high)
        figure.colorbar(shown, ax=axis, fraction=0.03, pad=0.02, label=_UNITS.get(name, ""))
        axis.set_title(name, fontsize=10)
    background = next(iter(row.fields.values()))
    headings = ("truth", f"network ({row.scores})")
    for axis, mask, heading in zip(axes[-2:], (row.truth, row.prediction), headings, strict=True):
        if mask is None:
            axis.set_axis_off()
            continue
        _draw(axis, row, background, cmap="gray", alpha=0.55)
        n_classes = len(_COLORS)
        _draw(axis, row, mask, cmap=ListedColormap(_COLORS), vmin=-0.5, vmax=n_classes - 0.5)
        axis.set_title(heading, fontsize=10)


def _draw(axis: Axes, row: MapRow, image: Tensor, **options: Any) -> Any:
    south, north = row.latitude_deg[0], row.latitude_deg[-1]
    if row.longitude_deg == (0.0, 360.0):
        axis.set_xticks([0, 90, 180, 270, 360])
        axis.set_yticks([-60, 0, 60])
    axis.tick_params(labelsize=7)
    # Nearest: the pixels that the method produced, not those of a viewer's interpolation.
    return axis.imshow(
        image.numpy(),
        extent=(*row.longitude_deg, south, north),
        origin="lower",
        interpolation="nearest",
        aspect="auto",
        **options,
    )
