"""The report of a segmentation run: thresholds that are the best there are, table and picture."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.zoo.climate_data import Maps, MapsData
from tests.zoo.presets import build
from zoo.errors import UserError
from zoo.loss.weighted_cross_entropy import WeightedCrossEntropy
from zoo.metric.iou import confusion_matrices
from zoo.model.segmentation import Segmentation
from zoo.report import segmentation_baseline
from zoo.report.segmentation import SegmentationReport, baselines
from zoo.report.segmentation_baseline import best_threshold_iou, damped

_NAMES = list(MapsData.class_names)
_DATA = {
    "channels": list(MapsData.channels),
    "class_names": _NAMES,
    "latitude_deg": MapsData.latitude_deg.tolist(),
}


def test_no_threshold_is_better() -> None:
    assert doctest.testmod(segmentation_baseline).attempted > 0
    assert doctest.testmod(segmentation_baseline).failed == 0
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 10, 12))
    labels = (values + 0.5 * rng.normal(size=values.shape) > 1.0).astype(int)
    background, event = best_threshold_iou(values, labels, ["background", "event"])
    for threshold in np.sort(values.ravel()):
        above = values >= threshold
        tried = (above & (labels == 1)).sum() / (above | (labels == 1)).sum()
        # Thresholds in 2,000 steps may pass between two values.
        assert tried <= event + 0.02
        tried = (~above & (labels == 0)).sum() / (~above | (labels == 0)).sum()
        assert tried <= background + 0.02


def test_damping_leaves_the_middle_latitudes() -> None:
    tmq = np.full((1, 5, 2), 40.0)
    factors = damped(tmq, np.array([-90.0, -40.0, 0.0, 40.0, 90.0]))[0, :, 0] / 40.0
    assert factors[2] == 0.0
    assert factors[1] == factors[3] == pytest.approx(1 - np.exp(-(40**2) / (2 * 19**2)))


def test_baselines_of_samples() -> None:
    samples = Maps(3, 0)
    found = baselines(samples, _DATA)
    assert found["all background"]["background"] == pytest.approx(
        float((samples.labels == 0).float().mean())
    )
    assert found["all background"]["tropical_cyclone"] == 0.0
    # TMQ above 1 is what a cyclone is in these maps.
    assert found["TMQ threshold"]["tropical_cyclone"] > 0.97
    assert found["TMQ threshold"]["atmospheric_river"] < 0.5
    assert set(baselines(samples, _DATA | {"channels": ["PSL"] * 4})) == {"all background"}


def test_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = build("tiramisu_tiny", in_channels=4, layers=[1, 1], growth=8, stem_channels=8)
    model = Segmentation(net, torch.optim.Adam, WeightedCrossEntropy())
    samples = Maps(4, 2)
    report = SegmentationReport()
    with pytest.raises(UserError, match="needs all test samples"):
        report.write(model, samples, tmp_path, tmp_path / "best.ckpt")
    model.data = _DATA
    model.confusion = confusion_matrices(samples.labels, samples.labels.roll(1), 3).float()
    paths = report.write(model, samples, tmp_path, tmp_path / "best.ckpt")
    results = json.loads(paths["results"].read_text())
    assert list(results["methods"]) == [
        "network",
        "all background",
        "TMQ threshold",
        "damped TMQ threshold",
    ]
    assert results["methods"]["network"]["iou_macro"] < 1.0
    assert np.sum(results["confusion"]) == samples.labels.numel()
    assert "iou_mlperf" in results["convention"]
    printed = capsys.readouterr().out
    assert "4 test samples" in printed
    with Image.open(paths["picture"]) as picture:
        assert min(picture.size) > 800
