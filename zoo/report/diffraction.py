"""Results of a diffraction run: a table, `results.json` and `comparison.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.files import write_json
from zoo.model.diffraction import COLUMNS, Diffraction, summarize
from zoo.report.diffraction_figure import SampleRow, save_comparison


class DiffractionReport:
    """Writes what a tested model did to the test samples.

    Args:
        quantiles: which samples are drawn, by their place in the order of relative L2 errors: 0 the
            best, 1 the worst, so that nobody picks.
    """

    def __init__(self, quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)) -> None:
        self.quantiles = tuple(quantiles)

    def write(
        self, model: Diffraction, samples: Any, run_dir: Path, checkpoint: Path
    ) -> dict[str, Path]:
        """Print the table, write both files. On one rank only, after `trainer.test`.

        Returns:
            what was written -> its path.
        """
        results = _results(model, checkpoint)
        Console().print(_table(results))
        paths = {"results": run_dir / "results.json", "picture": run_dir / "comparison.png"}
        write_json(paths["results"], results)
        mean = results["mean"]
        save_comparison(
            paths["picture"],
            self._rows(model, samples),
            f"{results['n_samples']} unseen crystals: mean relative L2 error {mean['rel_l2']:.3f} "
            f"(the training set's mean: {mean['rel_l2_mean_predictor']:.3f})",
        )
        return paths

    def _rows(self, model: Diffraction, samples: Any) -> list[SampleRow]:
        order = model.scores[:, COLUMNS.index("rel_l2")].argsort()
        places = [round(quantile * (len(order) - 1)) for quantile in self.quantiles]
        return [
            _row(model, samples, int(order[place]), f"{quantile:.0%}")
            for place, quantile in zip(places, self.quantiles, strict=True)
        ]


@torch.inference_mode()
def _row(model: Diffraction, samples: Any, index: int, quantile: str) -> SampleRow:
    sample = samples[index]
    potential = model.eval()(sample.cbed[None].to(model.device))[0, 0].cpu()
    scores = dict(zip(COLUMNS, model.scores[index].tolist(), strict=True))
    return SampleRow(
        name=f"sample {index}, {quantile} of errors below",
        pattern=_middle_pattern(model, sample.cbed),
        truth=sample.potential[0],
        reconstruction=potential,
        scores=f"rel. L2 {scores['rel_l2']:.3f}, SSIM {scores['ssim']:.3f}",
    )


def _middle_pattern(model: Diffraction, cbed: Tensor) -> Tensor:
    """Of the probe in the middle of the scan, [det_h, det_w]."""
    rows, cols = model.input.scan_shape
    return cbed[(rows // 2) * cols + cols // 2]


def _results(model: Diffraction, checkpoint: Path) -> dict[str, Any]:
    scores = model.scores
    return {
        "task": "diffraction to projected potential",
        "convention": {
            "rel_l2": "||y - y'|| / ||y||, mean over samples",
            "norm_difference": "| ||y|| - ||y'|| | / ||y||: compares norms only, no error",
            "ssim": "data range: the truth's own; Gaussian window, 11 pixels, sigma 1.5",
            "frc_cutoff": "share of Nyquist up to which the Fourier ring correlation is >= 0.5",
        },
        "layout": model.input.layout,
        "checkpoint": str(checkpoint),
        "n_weights": sum(parameter.numel() for parameter in model.net.parameters()),
        "n_samples": len(scores),
        "samples": {name: scores[:, i].tolist() for i, name in enumerate(COLUMNS)},
        "mean": {name: float(value) for name, value in summarize(scores).items()},
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }


def _table(results: dict[str, Any]) -> Table:
    table = Table(title=f"{results['n_samples']} test samples, {results['task']}")
    table.add_column("score")
    for heading in ("mean", "best", "median", "worst"):
        table.add_column(heading, justify="right")
    for name in COLUMNS:
        values = torch.tensor(results["samples"][name])
        best_first = values.sort(descending=name in ("ssim", "frc_cutoff")).values
        picked = (values.mean(), best_first[0], best_first[len(values) // 2], best_first[-1])
        table.add_row(name, *(f"{float(value):.3f}" for value in picked))
    return table
