"""The picture of a small inverse problem: curves, or images, of truth and estimates."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from zoo.files import written_whole

_DPI = 130


def save_figure(path: Path, drawn: dict[str, Tensor], title: str) -> None:
    """Draw each entry of `drawn`, [n, length] or [n, H, W], into a PNG, whole or not at all."""
    first = next(iter(drawn.values()))
    draw = _draw_images if first.squeeze(1).ndim == 3 else _draw_curves
    figure = draw({name: values.squeeze(1) for name, values in drawn.items()})
    figure.suptitle(title, fontsize=12)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _draw_curves(drawn: dict[str, Tensor]) -> Figure:
    n_samples = len(next(iter(drawn.values())))
    # A Figure of its own, not pyplot's: no global state, no display needed.
    figure = Figure(figsize=(4.2 * n_samples, 3.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, n_samples, squeeze=False)[0]
    styles = ["k-", "C0-", "C1--", "C2:"]
    for i, axis in enumerate(axes):
        for (name, curves), style in zip(drawn.items(), styles, strict=False):
            axis.plot(curves[i].numpy(), style, label=name)
        axis.set_title(f"test sample {i}", fontsize=10)
        axis.set_xlabel("grid point")
    axes[0].legend(frameon=False)
    return figure


def _draw_images(drawn: dict[str, Tensor]) -> Figure:
    n_samples = len(next(iter(drawn.values())))
    size_inch = (2.6 * len(drawn) + 0.8, 2.5 * n_samples + 0.6)
    figure = Figure(figsize=size_inch, dpi=_DPI, layout="constrained")
    axes = figure.subplots(n_samples, len(drawn), squeeze=False)
    truth = next(iter(drawn.values()))
    for i, row in enumerate(axes):
        low, high = float(truth[i].min()), float(truth[i].max())
        for axis, (name, images) in zip(row, drawn.items(), strict=True):
            shown = axis.imshow(images[i].numpy(), vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{name}, sample {i}", fontsize=10)
            axis.set_axis_off()
        figure.colorbar(shown, ax=row.tolist(), shrink=0.8)
    return figure
