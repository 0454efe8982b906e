"""Draw a generated snapshot: `python -m examples.climate_snapshot snapshot.png --size small`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from zoo.data.climate_channels import CHANNELS, TABLE
from zoo.data.climate_fields import make_fields
from zoo.data.climate_grid import regular_grid
from zoo.data.climate_labels import label_snapshot
from zoo.data.climate_shards import SIZES, climate_size
from zoo.files import written_whole

_MASK = ListedColormap(["#00000000", "#e4572e", "#2e86de"])
_EXTENT = (0.0, 360.0, -90.0, 90.0)


def draw(path: Path, size: str, seed: int, sequence: int, step: int, names: list[str]) -> None:
    """The labels over TMQ, then the named channels."""
    shape = climate_size(size).shape
    snapshot = make_fields(seed, sequence, step, shape)
    fields = {name: snapshot[..., number] for number, name in enumerate(CHANNELS)}
    labels = label_snapshot(fields, regular_grid(*shape))
    n_rows = -(-(len(names) + 1) // 3)
    figure = Figure(figsize=(13.0, 2.5 * n_rows + 0.4), dpi=80, layout="constrained")
    axes = figure.subplots(n_rows, 3, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    _show(axes[0], fields["TMQ"], "labels: cyclones red, rivers blue (over TMQ)", "gray")
    axes[0].imshow(labels, _MASK, extent=_EXTENT, origin="lower", interpolation="nearest",
                   aspect="auto", vmin=0, vmax=2)  # fmt: skip
    for axis, name in zip(axes[1:], names, strict=False):
        shown = np.log10(fields[name] + 1e-11) if name == "PRECT" else fields[name]
        unit = TABLE[CHANNELS.index(name)].unit
        title = f"{name}, log10 of {unit}" if name == "PRECT" else f"{name}, {unit}"
        figure.colorbar(_show(axis, shown, title, "viridis"), ax=axis, fraction=0.03, pad=0.02)
    with written_whole(path) as fresh:
        figure.savefig(fresh, facecolor="white")


def _show(axis, field, title, cmap):
    low, high = np.quantile(field, (0.003, 0.997))
    axis.set_title(title, fontsize=10)
    return axis.imshow(field, cmap, extent=_EXTENT, origin="lower", aspect="auto", vmin=low,
                       vmax=high)  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="a PNG")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sequence", type=int, default=5)
    parser.add_argument("--step", type=int, default=4, help="of 3 hours, 0 to 7")
    parser.add_argument("--channels", nargs="+", choices=CHANNELS,
                        default=["TMQ", "U850", "PSL", "PRECT", "TS"])  # fmt: skip
    options = parser.parse_args()
    draw(options.path, options.size, options.seed, options.sequence, options.step, options.channels)


if __name__ == "__main__":
    main()
