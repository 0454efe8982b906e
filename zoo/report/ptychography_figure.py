"""The picture of a ptychographic run: phase and amplitude of each reconstruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from zoo.files import written_whole
from zoo.solver.reconstruction import DataResidual, Reconstruction

_COLUMN_INCH = 4.0
_DPI = 110
# Light below this share of the brightest is too little to say anything.
_DARK = 0.02


def save_reconstructions(
    path: Path,
    found: dict[str, Reconstruction],
    residuals: dict[str, DataResidual],
    light: Tensor,
    margin_px: int,
) -> None:
    """Draw phase above and amplitude below, a column a reconstruction, and write a PNG whole."""
    size_inch = (_COLUMN_INCH * len(found), 2 * (_COLUMN_INCH - 0.6) + 0.8)
    # A Figure of its own, not pyplot's: no global state, no display needed.
    figure = Figure(figsize=size_inch, dpi=_DPI, layout="constrained")
    figure.suptitle("Siemens star from measured X-ray diffraction patterns", fontsize=13)
    axes = figure.subplots(2, len(found), squeeze=False)
    inner = (slice(margin_px, -margin_px or None),) * 2
    lit = (light > _DARK * light.max())[inner].numpy()
    images = {name: _aligned(one.image[inner].numpy(), lit) for name, one in found.items()}
    for column, (name, image) in enumerate(images.items()):
        axes[0, column].set_title(f"{name}\nresidual {residuals[name].amplitude:.3f}", fontsize=11)
        for axis, values in zip(axes[:, column], (np.angle(image), np.abs(image)), strict=True):
            drawn = axis.imshow(np.where(lit, values, np.nan), **_range(values[lit]))
            figure.colorbar(drawn, ax=axis, shrink=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, label in zip(axes[:, 0], ("phase (rad)", "amplitude"), strict=True):
        axis.set_ylabel(label, fontsize=12)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _aligned(image: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Without the constant phase, which no pattern can tell."""
    return image * np.exp(-1j * np.angle(image[lit].sum()))


def _range(values: np.ndarray) -> dict[str, object]:
    """Each picture's own gray scale, from the 1st to the 99th percentile: noise must not decide."""
    low, high = np.percentile(values, [1, 99])
    return {"vmin": low, "vmax": high, "cmap": "gray", "interpolation": "nearest"}
