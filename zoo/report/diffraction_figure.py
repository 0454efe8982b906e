"""The picture of a diffraction run: pattern, truth, reconstruction and error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from zoo.files import written_whole

_COLUMN_INCH = 3.2
_DPI = 130
_TITLES = ("pattern (square root)", "true potential", "reconstruction", "error")


class SampleRow(NamedTuple):
    """A row of the figure.

    Attributes:
        pattern: [det_h, det_w] intensities of one probe.
        truth, reconstruction: [H, W], in one unit.
        scores: shown over the error.
    """

    name: str
    pattern: Tensor
    truth: Tensor
    reconstruction: Tensor
    scores: str


def save_comparison(path: Path, rows: list[SampleRow], title: str) -> None:
    """Draw `rows` below each other and write a PNG, whole or not at all."""
    size_inch = (_COLUMN_INCH * len(_TITLES) + 0.8, _COLUMN_INCH * len(rows) + 0.6)
    # A Figure of its own, not pyplot's: no global state, no display needed.
    figure = Figure(figsize=size_inch, dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(len(rows), len(_TITLES), squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(figure, row, row_axes)
    for axis, heading in zip(axes[0], _TITLES, strict=True):
        axis.set_title(f"{heading}\n{axis.get_title()}".strip(), fontsize=11)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _draw_row(figure: Figure, row: SampleRow, axes: Any) -> None:
    axes[0].set_ylabel(row.name, fontsize=10)
    _draw(axes[0], row.pattern.clamp(min=0.0).sqrt(), cmap="inferno")
    # One scale for truth and reconstruction, and for the error the same span around zero.
    low, high = float(row.truth.min()), float(row.truth.max())
    for axis, image in ((axes[1], row.truth), (axes[2], row.reconstruction)):
        shown = _draw(axis, image, cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(shown, ax=axes[2], fraction=0.046, label="V Å")
    half = (high - low) / 2
    error = _draw(axes[3], row.reconstruction - row.truth, cmap="RdBu_r", vmin=-half, vmax=half)
    figure.colorbar(error, ax=axes[3], fraction=0.046, label="V Å")
    axes[3].set_title(row.scores, fontsize=10)


def _draw(axis: Axes, image: Tensor, **options: Any) -> Any:
    axis.set_xticks([])
    axis.set_yticks([])
    # Nearest: the pixels that the method produced, not those of a viewer's interpolation.
    return axis.imshow(image.numpy(), interpolation="nearest", **options)
