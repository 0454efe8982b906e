"""The segmentation model: what it learns, logs and stores, on one rank and on two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.ranks import run_ranks
from tests.zoo.climate_data import MapsData, OneSnapshot
from tests.zoo.presets import build
from zoo import evaluate
from zoo.checkpoint import read_checkpoint
from zoo.errors import CheckpointError, UserError
from zoo.loss.lovasz import Lovasz
from zoo.loss.weighted_cross_entropy import WeightedCrossEntropy
from zoo.model.segmentation import Segmentation, area_weights
from zoo.runtime import CONFIG_DIR, quiet_answered_warnings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated"),
]


def _model(**options: Any) -> Segmentation:
    torch.manual_seed(0)
    net = build("tiramisu_tiny", in_channels=4, layers=[1, 1], growth=8, stem_channels=8)
    options = {"loss": WeightedCrossEntropy(), **options}
    return Segmentation(net, partial(torch.optim.Adam, lr=1e-2), **options)


def _trainer(folder: Path, max_epochs: int, **options: Any) -> L.Trainer:
    quiet_answered_warnings()
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": max_epochs,
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


def test_learns_logs_and_stores_what_it_was_trained_on(tmp_path: Path) -> None:
    model, trainer = _model(), _trainer(tmp_path, max_epochs=8)
    trainer.fit(model, MapsData())
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {"val/loss", "val/iou_mlperf", "val/iou_mean", "val/iou_macro"} < set(scores)
    assert scores["val/iou_tropical_cyclone"] > 0.5
    assert scores["val/iou_atmospheric_river"] > 0.6
    # Square roots of the frequencies, inverted and normalised.
    weights = torch.tensor([0.58, 0.16, 0.26]).rsqrt()
    torch.testing.assert_close(model.loss.class_weights, weights / weights.sum())
    assert model.confusion.sum(dim=(1, 2)).tolist() == [16 * 24] * 5

    path = tmp_path / "weights.ckpt"
    trainer.save_checkpoint(path)
    stored = read_checkpoint(path)["climate_data"]
    assert stored["channels"] == ["TMQ", "U850", "V850", "PRECT"]
    assert stored["latitude_deg"][0] == -90.0
    again = _model()
    _trainer(tmp_path, max_epochs=1).test(again, MapsData(), ckpt_path=path, verbose=False)
    assert torch.equal(again.loss.class_weights, model.loss.class_weights)

    class OtherChannels(MapsData):
        channels = ("TMQ", "V850", "U850", "PRECT")

    with pytest.raises(CheckpointError, match=r"channels \['TMQ', 'U850'.*got \['TMQ', 'V850'"):
        _trainer(tmp_path, 9).fit(_model(), OtherChannels(), ckpt_path=path)


def test_bf16_is_scored_and_trained(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_epochs=3, precision="bf16-mixed")
    trainer.fit(_model(loss=Lovasz()), MapsData())
    assert float(trainer.callback_metrics["val/iou_macro"]) > 0.4


def test_data_that_do_not_fit_are_named(tmp_path: Path) -> None:
    class WithoutFrequencies(MapsData):
        class_frequencies = None

    class ThreeChannels(MapsData):
        channels = ("TMQ", "U850", "V850")

    for data, message in (
        (WithoutFrequencies(), "give model.loss.class_weights"),
        (ThreeChannels(), r"Expected 3 channels, got 4.*net.in_channels=3"),
    ):
        with pytest.raises(UserError, match=message):
            _trainer(tmp_path, 1).fit(_model(), data)


def test_areas_of_rows() -> None:
    weights = area_weights(torch.linspace(-90, 90, 181).tolist())
    assert weights.shape == (181, 1)
    assert float(weights.mean()) == pytest.approx(1.0)
    # One degree at 60 and at the equator; half a row at the pole, not none.
    assert float(weights[150] / weights[90]) == pytest.approx(0.5, abs=1e-3)
    assert 0.0 < float(weights[0]) < float(weights[1]) / 2
    assert torch.allclose(weights, weights.flip(0))


def test_area_weights_reach_the_loss(tmp_path: Path) -> None:
    model = _model(area_weighted=True)
    _trainer(tmp_path, 1, limit_train_batches=1, limit_val_batches=1).fit(model, MapsData())
    logits, labels = torch.randn(1, 3, 16, 24), torch.zeros(1, 16, 24, dtype=torch.int64)
    expected = model.loss(logits, labels, area_weights(MapsData.latitude_deg))
    torch.testing.assert_close(model._loss(logits, labels), expected)


def _tested(rank: int, folder: Path, **options: Any) -> dict[str, float]:
    return _trainer(folder, 1, **options).test(_model(), MapsData(), verbose=False)[0]


def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    """Five samples on two ranks: Lightning's sampler repeats one, which counts once."""
    one = _tested(0, tmp_path)
    for scores in run_ranks(2, partial(_tested, folder=tmp_path, devices=2, strategy="ddp")):
        assert scores == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_climate_tiny_learns_and_is_evaluated(tmp_path: Path, program: Callable[..., Path]) -> None:
    """Two ranks, a quarter of the experiment's steps and snapshots; one rank scores again."""
    run_dir, data = tmp_path / "run", tmp_path / "data"
    options = ("data.n_samples=120", "trainer.max_steps=80", f"data.path={data}")
    quiet = ("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false")
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "zoo.train", "experiment=climate_tiny", *options, *quiet),
            f"hydra.run.dir={run_dir}",
        ],
        cwd=CONFIG_DIR.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((run_dir / "results.json").read_text())
    methods = results["methods"]
    for name in ("iou_tropical_cyclone", "iou_atmospheric_river"):
        others = [scores[name] for method, scores in methods.items() if method != "network"]
        assert methods["network"][name] > max(others) + 0.05
    assert (run_dir / "comparison.png").stat().st_size > 50_000

    scored = program(evaluate.main, "scored", f"checkpoint={results['checkpoint']}")
    again = json.loads((scored / "results.json").read_text())["methods"]["network"]
    assert again == pytest.approx(methods["network"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("deepcam", "lamb"), ("tiramisu", "larc_adam"), ("deeplab_v3_plus", "larc_adam")],
)
def test_a_step_at_full_size(name: str, optimizer: str, tmp_path: Path) -> None:
    """768 x 1152 pixels, bf16, recomputed activations."""
    model = Segmentation(
        build(name, activation_checkpointing=True),
        instantiate(OmegaConf.load(CONFIG_DIR / "optimizer" / f"{optimizer}.yaml")),
        WeightedCrossEntropy(exponent=0.125, normalize=False, reduction="mean"),
    )
    before = [p.detach().clone() for p in model.net.parameters()]
    options = {"max_steps": 1, "limit_val_batches": 0, "precision": "bf16-mixed"}
    _trainer(tmp_path, -1, gradient_clip_val=1.0, **options).fit(model, OneSnapshot())
    after = list(model.net.parameters())
    assert all(p.isfinite().all() for p in after)
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))
