"""Results of a ptychographic run: the network beside iterative solvers, with all residuals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning as L
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from zoo.data.ptychography import WholeScan
from zoo.data.ptychography_file import Scan
from zoo.files import write_json
from zoo.model.ptychography import Ptychography
from zoo.report.ptychography_figure import save_reconstructions
from zoo.solver.epie import epie
from zoo.solver.gradient_descent import gradient_descent
from zoo.solver.reconstruction import (
    DataResidual,
    Reconstruction,
    data_residual,
    flat_image,
    illumination,
)

Solver = Callable[[Scan, Iterable[int]], Reconstruction]


class PtychographyReport:
    """Reconstructs the same scan iteratively and draws all objects beside each other.

    Args:
        epie_epochs, gradient_descent_epochs: passes through the scan; 0 leaves a solver out.
        margin_px: of the object that the pictures leave out, where hardly any light fell.
    """

    def __init__(self, epie_epochs: int, gradient_descent_epochs: int, margin_px: int) -> None:
        self.solvers: dict[str, tuple[Solver, int]] = {
            "ePIE": (epie, epie_epochs),
            "gradient descent": (gradient_descent, gradient_descent_epochs),
        }
        self.margin_px = margin_px

    def write(
        self, model: Ptychography, scans: WholeScan, run_dir: Path, checkpoint: Path
    ) -> dict[str, Path]:
        """Print the table, write both files. On one rank only, after `trainer.test`.

        Returns:
            what was written -> its path.
        """
        scan = scans.scan
        found, seconds = {"network": model.reconstruction}, {}
        for name, (solver, n_epochs) in self.solvers.items():
            if n_epochs:
                begin_s = time.perf_counter()
                found[name] = solver(scan, track(range(n_epochs), description=f"{name:<16}"))
                seconds[name] = time.perf_counter() - begin_s
        residuals = {name: data_residual(scan, found[name]) for name in found}
        flat = data_residual(scan, Reconstruction(flat_image(scan), scan.probe))
        Console().print(_table(residuals | {"flat object, first probe": flat}))
        paths = {"results": run_dir / "results.json", "picture": run_dir / "reconstruction.png"}
        write_json(paths["results"], _results(model, residuals, flat, seconds, checkpoint))
        light = illumination(scan, found["network"].probe)
        save_reconstructions(paths["picture"], found, residuals, light, self.margin_px)
        return paths


def _results(
    model: Ptychography,
    residuals: dict[str, DataResidual],
    flat: DataResidual,
    seconds: dict[str, float],
    checkpoint: Path,
) -> dict:
    return {
        "task": "ptychography of a Siemens star from measured patterns",
        "checkpoint": str(checkpoint),
        "n_weights": sum(parameter.numel() for parameter in model.net.parameters()),
        "residuals": {name: residual._asdict() for name, residual in residuals.items()},
        "flat_object": flat._asdict(),
        "solver_s": seconds,
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }


def _table(residuals: dict[str, DataResidual]) -> Table:
    table = Table(title="How well each object and probe explain the measured patterns")
    table.add_column("reconstruction")
    table.add_column("amplitude residual", justify="right")
    table.add_column("Poisson deviance a pixel", justify="right")
    for name, residual in residuals.items():
        table.add_row(name, f"{residual.amplitude:.4f}", f"{residual.deviance:.3f}")
    return table
