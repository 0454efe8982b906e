"""The picture of a ptychographic run: phase and amplitude of each reconstruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from zoo.files import written_whole
from zoo.solver.reconstruction import DataResidual, Reconstruction

_COLUMN_INCH = 3.6
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
    size_inch = (_COLUMN_INCH * len(found) + 0.8, 2 * _COLUMN_INCH + 0.8)
    # A Figure of its own, not pyplot's: no global state, no display needed.
    figure = Figure(figsize=size_inch, dpi=_DPI, layout="constrained")
    figure.suptitle("Siemens star from measured X-ray diffraction patterns", fontsize=13)
    axes = figure.subplots(2, len(found), squeeze=False)
    inner = (slice(margin_px, -margin_px or None),) * 2
    lit = (light > _DARK * light.max())[inner].numpy()
    images = {name: _aligned(one.image[inner].numpy(), lit) for name, one in found.items()}
    phase_range = _range([np.angle(image)[lit] for image in images.values()])
    amplitude_range = _range([np.abs(image)[lit] for image in images.values()])
    for column, (name, image) in enumerate(images.items()):
        axes[0, column].set_title(f"{name}\nresidual {residuals[name].amplitude:.3f}", fontsize=11)
        phase = axes[0, column].imshow(np.where(lit, np.angle(image), np.nan), **phase_range)
        amplitude = axes[1, column].imshow(np.where(lit, np.abs(image), np.nan), **amplitude_range)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(phase, ax=axes[0], label="phase (rad)", shrink=0.8)
    figure.colorbar(amplitude, ax=axes[1], label="amplitude", shrink=0.8)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _aligned(image: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Without the constant phase, which no pattern can tell."""
    return image * np.exp(-1j * np.angle(image[lit].sum()))


def _range(values: list[np.ndarray]) -> dict[str, object]:
    """One gray scale for all, from the 1st to the 99th percentile."""
    low, high = np.percentile(np.concatenate(values), [1, 99])
    return {"vmin": low, "vmax": high, "cmap": "gray", "interpolation": "nearest"}
