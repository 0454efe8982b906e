"""The LightningModule and the report, without a Trainer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.data.photograph_file import PhotographFile
from zoo.data.photographs import Pair, RandomPatches, WholePictures
from zoo.model.super_resolution import SuperResolution
from zoo.net.edsr import EDSR
from zoo.report.super_resolution import SuperResolutionReport
from zoo.scheduler.cosine import CosineDecay


def _model(**options: object) -> SuperResolution:
    torch.manual_seed(0)
    net = EDSR(channels=16, blocks=2, bicubic_skip=True)
    return SuperResolution(net, partial(torch.optim.Adam, lr=3e-3), **options)


def test_overfits_one_patch(photographs_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = RandomPatches(PhotographFile(photographs_path), 24, 2, 4, seed=0)
    batch = Pair(*(tensor[None] for tensor in patches[0, 0]))
    model = _model()
    monkeypatch.setattr(model, "log", lambda *args, **kwargs: None)
    optimizer = model.configure_optimizers()
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        loss = model.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_prediction_is_clamped() -> None:
    model = _model()
    torch.nn.init.constant_(model.net.tail.bias, 3.0)
    assert torch.equal(model(torch.rand(1, 3, 4, 4)), torch.ones(1, 3, 8, 8))


def test_schedule_advances_every_step() -> None:
    configured = _model(scheduler=partial(CosineDecay, n_steps=10)).configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]


def test_metric_border_is_the_scale() -> None:
    assert _model().convention.border_px == 2


def _scored(model: SuperResolution, scores: Tensor) -> SuperResolution:
    model.scores = scores
    return model


def test_report_writes_numbers_and_picture(
    photographs_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = WholePictures(PhotographFile(photographs_path), "test", 2)
    scores = torch.tensor([[31.0, 0.9, 30.0, 0.8]] * len(pictures))
    report = SuperResolutionReport(crop_px=32, crops={"camera": [100, 200]})
    paths = report.write(_scored(_model(), scores), pictures, tmp_path, Path("best.ckpt"))
    results = json.loads(paths["results"].read_text())
    assert results["convention"]["channel"] == "y"
    assert results["mean"]["psnr_gain"] == pytest.approx(1.0)
    assert list(results["pictures"]) == list(pictures.names)
    assert paths["picture"].read_bytes().startswith(b"\x89PNG")
    assert "camera" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.png", "results.json"]
