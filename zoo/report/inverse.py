"""Results of a small inverse problem: a line, `results.json` and `comparison.png`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import default_collate

from zoo.data.samples import Sample, Samples
from zoo.files import write_json
from zoo.metric.sample_errors import psnr, relative_error
from zoo.model.inverse import COLUMNS, Inverse
from zoo.report.inverse_figure import save_figure


class InverseReport:
    """Writes what a tested model makes of the test data, beside a classical solution of the same.

    Args:
        reference: data [N, ...] -> estimate [N, ...], such as `zoo.model.tikhonov.Tikhonov`; None
            for no comparison.
        reference_name: its name in table and picture.
        n_drawn: test samples in the picture.
        shown: estimate -> what is drawn and compared to the eye, such as a field of coefficients;
            None draws the estimates themselves.
    """

    def __init__(
        self,
        reference: Callable[[Tensor], Tensor] | None = None,
        reference_name: str = "Tikhonov",
        n_drawn: int = 3,
        shown: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.reference = reference
        self.reference_name = reference_name
        self.n_drawn = n_drawn
        self.shown = shown

    def write(
        self, model: Inverse, samples: Samples, run_dir: Path, checkpoint: Path
    ) -> dict[str, Path]:
        """Print the table, write both files. On one rank only, after `trainer.test`.

        Returns:
            what was written -> its path.
        """
        batch = default_collate([samples[i] for i in range(len(samples))])
        rows = {"network": _means(model.scores)}
        if self.reference is not None:
            rows[self.reference_name] = _means(_errors(self.reference(batch.data), batch.truth))
        Console().print(_table(rows, len(samples)))
        paths = {"results": run_dir / "results.json", "picture": run_dir / "comparison.png"}
        write_json(paths["results"], _results(rows, model, samples, checkpoint))
        save_figure(paths["picture"], self._drawn(model, batch), _title(rows))
        return paths

    @torch.no_grad()
    def _drawn(self, model: Inverse, batch: Sample) -> dict[str, Tensor]:
        truth, data = batch.truth[: self.n_drawn], batch.data[: self.n_drawn]
        shown = self.shown or (lambda u: u)
        drawn = {"truth": shown(truth), "network": shown(model.eval()(data.to(model.device)).cpu())}
        if self.reference is not None:
            drawn[self.reference_name] = shown(self.reference(data))
        return drawn


def _errors(estimate: Tensor, truth: Tensor) -> Tensor:
    squared = (estimate - truth).flatten(1).square().sum(1)
    return torch.stack([relative_error(estimate, truth), psnr(estimate, truth), squared], dim=1)


def _means(scores: Tensor) -> dict[str, float]:
    return dict(zip(COLUMNS, scores.nanmean(0).tolist(), strict=True))


def _results(rows: dict, model: Inverse, samples: Samples, checkpoint: Path) -> dict[str, Any]:
    return {
        "test_samples": len(samples),
        "mean": rows,
        "checkpoint": str(checkpoint),
        "n_weights": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }


def _title(rows: dict[str, dict[str, float]]) -> str:
    errors = ", ".join(f"{name} {100 * row['relative_error']:.2f} %" for name, row in rows.items())
    return f"Mean relative error on the test samples: {errors}"


def _table(rows: dict[str, dict[str, float]], n_samples: int) -> Table:
    table = Table(title=f"Means over {n_samples} test samples")
    table.add_column("method")
    for heading in ("relative error", "PSNR (dB)", "squared error"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.4f}" for column in COLUMNS))
    return table
