"""Results of a segmentation run: IoU beside baselines, `results.json` and `comparison.png`."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.errors import UserError
from zoo.files import write_json
from zoo.metric.iou import DEFINITIONS, mlperf_iou, summarize
from zoo.model.segmentation import Segmentation
from zoo.report.segmentation_baseline import best_threshold_iou, damped
from zoo.report.segmentation_figure import MapRow, save_comparison

BASELINES = {
    "all background": "no pixel is of any event",
    "TMQ threshold": "TMQ above (background: below) one threshold a class, the best for these very "
    "samples",
    "damped TMQ threshold": "the same of TMQ (1 - exp(-lat^2 / (2 19^2))), the first step "
    "of the rule that the labels of rivers follow",
}


class SegmentationReport:
    """Writes what a tested model did to the test samples, and what needs no model does.

    Args:
        quantiles: which samples are drawn, by their place in the order of MLPerf's IoU: 0 the
            worst, 1 the best, so that nobody picks.
        drawn_channels: at most two, by name; those that the data lack are left out.
    """

    def __init__(
        self,
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        drawn_channels: tuple[str, ...] = ("TMQ", "PSL"),
    ) -> None:
        self.quantiles, self.drawn_channels = tuple(quantiles), tuple(drawn_channels)

    def write(
        self, model: Segmentation, samples: Any, run_dir: Path, checkpoint: Path
    ) -> dict[str, Path]:
        """Print the table, write both files. On one rank only, after `trainer.test`.

        Args:
            samples: the test set, of `ClimateBatch`es without the batch dimension.

        Returns:
            what was written -> its path.

        Raises:
            UserError: nothing was tested.
        """
        matrices = model.confusion
        if matrices is None or matrices.isnan().any():
            raise UserError(
                "the report needs all test samples scored. Next, leave out "
                "trainer.limit_test_batches."
            )
        # In physical units, which baselines and pictures are about.
        physical = copy(samples)
        physical.normalization = None
        results = _results(model, checkpoint, baselines(physical, model.data))
        Console().print(_table(results))
        paths = {"results": run_dir / "results.json", "picture": run_dir / "comparison.png"}
        write_json(paths["results"], results)
        mean = results["methods"]["network"]
        rows = [self._row(model, samples, physical, *place) for place in self._places(matrices)]
        save_comparison(
            paths["picture"],
            rows,
            model.data["class_names"],
            f"{len(matrices)} unseen snapshots: "
            + ", ".join(f"IoU {name} {_shown(value)}" for name, value in _classes(mean)),
        )
        return paths

    def _places(self, matrices: Tensor) -> list[tuple[int, str]]:
        order = torch.stack([mlperf_iou(one[None]) for one in matrices]).argsort()
        return [
            (int(order[round(quantile * (len(order) - 1))]), f"{quantile:.0%} score lower")
            for quantile in self.quantiles
        ]

    @torch.inference_mode()
    def _row(
        self, model: Segmentation, samples: Any, physical: Any, index: int, place: str
    ) -> MapRow:
        fields = samples[index].fields[None].to(model.device)
        prediction = model.eval().predict(fields)[0].cpu()
        channels = model.data["channels"]
        drawn = [name for name in self.drawn_channels if name in channels] or channels[:1]
        sample = physical[index]
        scores = summarize(model.confusion[index][None], tuple(model.data["class_names"]))
        return MapRow(
            name=f"sample {index}\n{place}",
            fields={name: sample.fields[channels.index(name)].float() for name in drawn[:2]},
            truth=sample.labels,
            prediction=prediction,
            latitude_deg=model.data["latitude_deg"],
            scores="IoU "
            + ", ".join(f"{_short(name)} {_shown(float(v))}" for name, v in _classes(scores)),
        )


def baselines(physical: Any, data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Method -> IoU by class name, over all pixels of all samples.

    Args:
        physical: samples in physical units.
        data: of the model.
    """
    names = data["class_names"]
    labels, tmq = _labels_and_channel(physical, data["channels"], "TMQ")
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    nothing = [shares[0], *(0.0 if share else float("nan") for share in shares[1:])]
    found = {"all background": dict(zip(names, map(float, nothing), strict=True))}
    if tmq is not None:
        latitude = np.asarray(data["latitude_deg"])
        for name, values in (
            ("TMQ threshold", tmq),
            ("damped TMQ threshold", damped(tmq, latitude)),
        ):
            found[name] = dict(zip(names, best_threshold_iou(values, labels, names), strict=True))
    return found


def _labels_and_channel(
    physical: Any, channels: list[str], name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """[N, H, W] uint8 classes, and one channel, None if there is none; each sample is read once."""
    place = channels.index(name) if name in channels else None
    labels, values = [], []
    for index in range(len(physical)):
        sample = physical[index]
        labels.append(sample.labels.numpy().astype(np.uint8))
        if place is not None:  # a copy, as a view would keep all channels
            values.append(sample.fields[place].numpy().copy())
    return np.stack(labels), np.stack(values) if values else None


def _results(
    model: Segmentation, checkpoint: Path, found: dict[str, dict[str, float]]
) -> dict[str, Any]:
    names = model.data["class_names"]
    network = {
        name: float(value) for name, value in summarize(model.confusion, tuple(names)).items()
    }
    methods = {"network": network}
    for method, classes in found.items():
        present = [value for value in classes.values() if value == value]
        of_classes = {f"iou_{name}": value for name, value in classes.items()}
        methods[method] = {"iou_macro": sum(present) / len(present), **of_classes}
    return {
        "task": "segmentation of weather events",
        "convention": DEFINITIONS | {"iou_CLASS": "over all pixels of all samples"} | BASELINES,
        "checkpoint": str(checkpoint),
        "channels": model.data["channels"],
        "class_names": names,
        "n_weights": sum(parameter.numel() for parameter in model.net.parameters()),
        "n_samples": len(model.confusion),
        "methods": {
            method: {name: _json_number(value) for name, value in scores.items()}
            for method, scores in methods.items()
        },
        "confusion": model.confusion.sum(dim=0).long().tolist(),
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }


def _table(results: dict[str, Any]) -> Table:
    table = Table(title=f"{results['n_samples']} test samples, {results['task']}: IoU")
    table.add_column("method")
    columns = [f"iou_{name}" for name in results["class_names"]] + list(DEFINITIONS)
    for name in columns:
        table.add_column(name.removeprefix("iou_").replace("_", " "), justify="right")
    for method, scores in results["methods"].items():
        table.add_row(method, *(_shown(scores[n]) if n in scores else "" for n in columns))
    return table


def _classes(scores: dict[str, Any]) -> list[tuple[str, Any]]:
    """The scores by class but the background's, named by the class."""
    left_out = {*DEFINITIONS, "iou_background"}
    return [
        (name.removeprefix("iou_").replace("_", " "), value)
        for name, value in scores.items()
        if name not in left_out
    ]


def _short(name: str) -> str:
    """Initials: TC of a tropical cyclone."""
    return "".join(word[0].upper() for word in name.split())


def _json_number(value: float) -> float | None:
    """JSON has no NaN: a class that is in neither mask scores null."""
    return value if value == value else None


def _shown(value: float | None) -> str:
    return "absent" if value is None or value != value else f"{value:.3f}"
