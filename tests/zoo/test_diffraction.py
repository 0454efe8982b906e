"""The diffraction model: its input's layouts and statistics, training, scores, checkpoints."""

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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.ranks import run_ranks
from zoo import evaluate
from zoo.errors import UserError
from zoo.model.diffraction import COLUMNS, Diffraction, DiffractionBatch, scores_of
from zoo.model.diffraction_input import DiffractionInput, Standardisation, moments_of
from zoo.net.fc_densenet import FCDenseNet
from zoo.runtime import CONFIG_DIR, quiet_answered_warnings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0"),
]

_SCAN, _DETECTOR = (2, 3), (8, 4)


def _patterns(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 6, 8, 4, generator=torch.Generator().manual_seed(seed))


def test_scan_positions_as_channels() -> None:
    patterns = _patterns()
    laid_out = DiffractionInput(_SCAN, _DETECTOR).laid_out(patterns)
    assert laid_out.shape == (4, 6, 8, 4)
    expected = (patterns[1, 5, 2, 3] - patterns[1, 5].min()).sqrt()
    torch.testing.assert_close(laid_out[1, 5, 2, 3], expected)


def test_detector_pixels_as_channels() -> None:
    patterns = _patterns()
    laid_out = DiffractionInput(_SCAN, _DETECTOR, "detector_channels", bin_px=2).laid_out(patterns)
    assert laid_out.shape == (4, 8, 2, 3)
    # Detector pixel (row 3, column 1) of 4 x 2 binned ones is channel 7; probe (1, 2) is the sixth.
    binned = patterns[1, 5].view(4, 2, 2, 2).sum(dim=(1, 3))
    torch.testing.assert_close(laid_out[1, 7, 1, 2], (binned[3, 1] - binned.min()).sqrt())


@pytest.mark.parametrize(("scaling", "top"), [("none", 4.0), ("sqrt", 2.0), ("log", 1.6094379)])
def test_scaling(scaling: str, top: float) -> None:
    pattern = torch.tensor([[[[5.0, 1.0], [1.0, 1.0]]]])  # 4 over its minimum, 1 on average
    laid_out = DiffractionInput((1, 1), (2, 2), scaling=scaling).laid_out(pattern)
    assert laid_out.flatten().tolist() == pytest.approx([top, 0.0, 0.0, 0.0])


def test_half_precision_patterns_are_scaled_in_single() -> None:
    laid_out = DiffractionInput(_SCAN, _DETECTOR).laid_out(_patterns().half())
    assert laid_out.dtype == torch.float32


def test_statistics_in_parts_equal_those_of_the_whole() -> None:
    x = 1000.0 + torch.randn(6, 3, 4, 4)
    x[:, 2] = 7.0
    standardisation = Standardisation(3)
    standardisation.set_statistics(moments_of(x[:2]) + moments_of(x[2:]))
    torch.testing.assert_close(standardisation.mean[:, 0, 0], x.mean(dim=(0, 2, 3)))
    std = x.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(standardisation.std[:2, 0, 0], std[:2], rtol=1e-4, atol=0.0)
    # A constant channel is left at zero, not blown up.
    assert float(standardisation(x)[:, 2].abs().max()) == 0.0
    torch.testing.assert_close(standardisation.undo(standardisation(x)), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "rows"}, "layout must be one of"),
        ({"scaling": "cube"}, "scaling must be one of"),
        ({"bin_px": 3}, "multiples of bin_px=3"),
    ],
)
def test_bad_input_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffractionInput(_SCAN, _DETECTOR, **options)


def test_another_scan_is_named() -> None:
    message = r"\[N, 6, 8, 4\] \(a scan of \(2, 3\) probes.*got \[1, 9, 8, 4\].*scan_shape"
    with pytest.raises(ValueError, match=message):
        DiffractionInput(_SCAN, _DETECTOR)(torch.zeros(1, 9, 8, 4))


class _Crystals(Dataset):
    """Patterns whose brightness is the potential's: learnt within a few steps."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.potential = torch.rand(n, 1, 16, 16, generator=generator) + 1.0
        self.cbed = torch.nn.functional.avg_pool2d(self.potential, 2).expand(n, 16, 8, 8).clone()

    def __len__(self) -> int:
        return len(self.cbed)

    def __getitem__(self, index: int) -> DiffractionBatch:
        return DiffractionBatch(index, self.cbed[index], self.potential[index])


class _Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Crystals(24, 0), 4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_Crystals(5, 1), 2)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(_Crystals(5, 2), 2)


def _model(**options: Any) -> Diffraction:
    torch.manual_seed(0)
    net = FCDenseNet(16, layers=[1, 1, 1], growth=4, upscale=2)
    adam = partial(torch.optim.Adam, lr=1e-2)
    return Diffraction(net, DiffractionInput((4, 4), (8, 8)), adam, **options)


def _trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 6,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


def _fit_and_test(rank: int = 0, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    quiet_answered_warnings()
    model, data, trainer = _model(), _Data(), _trainer(**options)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return model.input.standardisation.mean, model.output.std, model.scores


def test_statistics_are_the_training_sets() -> None:
    mean, std, scores = _fit_and_test()
    crystals = _Crystals(24, 0)
    laid_out = DiffractionInput((4, 4), (8, 8)).laid_out(crystals.cbed)
    torch.testing.assert_close(mean[:, 0, 0], laid_out.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(std[0, 0, 0], crystals.potential.std(correction=0))
    assert scores.shape == (5, len(COLUMNS))
    assert scores.isfinite().all()


def test_ranks_have_the_same_statistics_and_each_sample_once() -> None:
    one, two = (
        _fit_and_test(max_steps=0),
        run_ranks(2, partial(_fit_and_test, devices=2, strategy="ddp", max_steps=0)),
    )
    for got in two:
        for theirs, ours in zip(got, one, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_statistics_go_with_the_checkpoint(tmp_path: Path) -> None:
    model, data, trainer = _model(), _Data(), _trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    other = _model()
    assert not other.has_statistics
    other.load_state_dict(state)
    cbed = _Crystals(2, 3).cbed
    torch.testing.assert_close(other.eval()(cbed), model.eval()(cbed))
    # Loaded statistics stay: training does not take new ones.
    other.input.standardisation.mean.fill_(3.0)
    _trainer(max_steps=1).fit(other.train(), data)
    assert (other.input.standardisation.mean == 3.0).all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_lower_precision_trains(precision: str, loss: str) -> None:
    model = _model(loss=loss)
    trainer = _trainer(precision=precision, max_steps=2)
    trainer.fit(model, _Data())
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert model(_Crystals(1, 0).cbed).dtype == torch.float32


def test_losses_by_hand() -> None:
    for loss, expected in (("l1", 2.0), ("huber", 1.0 * (2.0 - 0.5))):
        model = _model(loss=loss)
        model.log = lambda *_, **__: None
        model.net.forward = lambda x: torch.zeros(len(x), 1, 16, 16)
        batch = DiffractionBatch(0, _Crystals(2, 0).cbed, torch.full((2, 1, 16, 16), 2.0))
        assert float(model.training_step(batch, 0)) == pytest.approx(expected)


def test_scores_of_a_perfect_and_a_permuted_image() -> None:
    torch.manual_seed(0)
    truth = torch.rand(2, 1, 16, 16)
    image = truth.clone()
    image[1] = truth[1].flatten()[torch.randperm(256)].view(1, 16, 16)
    scores = scores_of(image, truth, torch.zeros_like(truth))
    perfect, permuted = (dict(zip(COLUMNS, row.tolist(), strict=True)) for row in scores)
    assert perfect == pytest.approx(
        {"rel_l2": 0, "rel_l2_mean_predictor": 1, "norm_difference": 0, "ssim": 1, "frc_cutoff": 1}
    )
    assert permuted["norm_difference"] == pytest.approx(0.0, abs=1e-6)
    assert permuted["rel_l2"] > 0.5
    assert permuted["ssim"] < 0.5
    assert permuted["frc_cutoff"] < 0.5


def test_wrong_channels_and_loss_are_named() -> None:
    net, adam = FCDenseNet(9, layers=[1, 1, 1], growth=4), torch.optim.Adam
    with pytest.raises(
        ValueError, match=r"net of 16 input channels.*got 9; set net.in_channels=16"
    ):
        Diffraction(net, DiffractionInput((4, 4), (8, 8)), adam)
    with pytest.raises(ValueError, match="loss must be"):
        _model(loss="l2")


def test_output_of_another_size_is_named() -> None:
    model = _model()
    model.log = lambda *_, **__: None
    batch = DiffractionBatch(0, _Crystals(2, 0).cbed, torch.zeros(2, 1, 32, 32))
    with pytest.raises(
        UserError, match=r"Expected \[2, 1, 32, 32\], got \[2, 1, 16, 16\].*upscale"
    ):
        model.training_step(batch, 0)


def test_forward_operations_are_the_nets_own() -> None:
    model = _model()
    stem = 2 * 16 * 4 * 9 * 64
    assert model.forward_flop_per_sample(None) > stem


@pytest.mark.slow
def test_cbed_tiny_learns_and_is_evaluated(
    tmp_path: Path, program: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks, fewer steps than the experiment has, then its checkpoint on one rank."""
    run_dir = tmp_path / "run"
    options = ("trainer.max_steps=200", f"data.path={tmp_path / 'data'}")
    quiet = ("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false")
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "zoo.train", "experiment=cbed_tiny", *options, *quiet),
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
    assert results["n_samples"] == 64
    assert results["mean"]["rel_l2"] <= 0.25
    assert results["mean"]["rel_l2"] <= 0.4 * results["mean"]["rel_l2_mean_predictor"]
    assert "throughput: " in finished.stdout
    assert "of the measured peak" in finished.stdout
    assert (run_dir / "comparison.png").stat().st_size > 50_000

    checkpoint = results["checkpoint"]  # the best, which need not be the last
    folder = f"data_path={tmp_path / 'data'}"
    scored = program(evaluate.main, "scored", f"checkpoint={checkpoint}", folder)
    again = json.loads((scored / "results.json").read_text())
    assert again["mean"] == pytest.approx(results["mean"], abs=2e-3)
