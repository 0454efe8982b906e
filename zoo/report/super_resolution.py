"""Results of a super-resolution run: a table, `results.json` and `comparison.png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.data.photographs import Picture, WholePictures
from zoo.files import write_json
from zoo.metric.picture_scores import COLUMNS, summarize
from zoo.model.super_resolution import SuperResolution
from zoo.physics.bicubic import upsample
from zoo.report.super_resolution_figure import CropRow, save_comparison


class SuperResolutionReport:
    """Writes what a tested model did to the test pictures.

    Args:
        crop_px: side of the square crops drawn, in high-resolution pixels.
        crops: picture's name -> row and column of the crop's upper left corner; pictures not named
            here are scored but not drawn.
    """

    def __init__(self, crop_px: int, crops: Mapping[str, Sequence[int]]) -> None:
        self.crop_px = crop_px
        self.crops = crops

    def write(
        self, model: SuperResolution, pictures: WholePictures, run_dir: Path, checkpoint: Path
    ) -> dict[str, Path]:
        """Print the table, write both files. On one rank only, after `trainer.test`.

        Returns:
            what was written -> its path.
        """
        results = _results(model, pictures.names, checkpoint)
        Console().print(_table(results))
        paths = {"results": run_dir / "results.json", "picture": run_dir / "comparison.png"}
        write_json(paths["results"], results)
        mean = results["mean"]
        save_comparison(
            paths["picture"],
            self._rows(model, pictures),
            f"x{model.scale} super-resolution of held-out photographs: mean PSNR "
            f"{mean['psnr_bicubic']:.2f} dB bicubic, {mean['psnr']:.2f} dB network "
            "(titles: PSNR of the whole picture)",
        )
        return paths

    def _rows(self, model: SuperResolution, pictures: WholePictures) -> list[CropRow]:
        return [
            self._row(model, pictures[index], name)
            for index, name in enumerate(pictures.names)
            if name in self.crops
        ]

    @torch.inference_mode()
    def _row(self, model: SuperResolution, picture: Picture, name: str) -> CropRow:
        low = picture.low[None].to(model.device)
        restored, bicubic = model.eval()(low).cpu(), upsample(low, model.scale).cpu()
        scores = dict(zip(COLUMNS, model.scores[picture.index].tolist(), strict=True))
        images = {
            "low resolution": self._crop(picture.low, name, model.scale),
            f"bicubic  {scores['psnr_bicubic']:.2f} dB": self._crop(bicubic[0], name),
            f"network  {scores['psnr']:.2f} dB": self._crop(restored[0], name),
            "truth": self._crop(picture.high, name),
        }
        return CropRow(name, images)

    def _crop(self, image: Tensor, name: str, scale: int = 1) -> Tensor:
        """The named crop out of [3, H, W], or out of the picture that is `scale` times smaller."""
        row, col = (start // scale for start in self.crops[name])
        side_px = self.crop_px // scale
        return image[:, row : row + side_px, col : col + side_px]


def _results(model: SuperResolution, names: Sequence[str], checkpoint: Path) -> dict:
    scores = model.scores
    return {
        "task": f"super-resolution x{model.scale}",
        "convention": model.convention.as_dict(),
        "checkpoint": str(checkpoint),
        "n_weights": sum(parameter.numel() for parameter in model.parameters()),
        "pictures": {
            name: dict(zip(COLUMNS, row, strict=True))
            for name, row in zip(names, scores.tolist(), strict=True)
        },
        "mean": {name: float(value) for name, value in summarize(scores).items()},
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }


def _table(results: dict) -> Table:
    channel = results["convention"]["channel"]
    table = Table(title=f"Test pictures, {results['task']} (PSNR in dB, channel {channel})")
    table.add_column("picture")
    for heading in ("PSNR bicubic", "PSNR network", "gain", "SSIM bicubic", "SSIM network"):
        table.add_column(heading, justify="right")
    for name, row in results["pictures"].items():
        table.add_row(name, *_cells(row))
    table.add_section()
    table.add_row("mean", *_cells(results["mean"]), style="bold")
    return table


def _cells(row: Mapping[str, float]) -> list[str]:
    return [
        f"{row['psnr_bicubic']:.2f}",
        f"{row['psnr']:.2f}",
        f"{row['psnr'] - row['psnr_bicubic']:+.2f}",
        f"{row['ssim_bicubic']:.4f}",
        f"{row['ssim']:.4f}",
    ]
