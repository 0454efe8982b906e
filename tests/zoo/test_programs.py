"""zoo.train and zoo.evaluate from the command line's side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoo import evaluate, train
from zoo.checkpoint import read_checkpoint
from zoo.runtime import CONFIG_DIR

pytestmark = [
    # Lightning's hints to longer runs.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

_TINY = (
    "strategy=auto",
    "net.channels=4",
    "net.blocks=1",
    "data.patch_px=16",
    "data.batch_size=2",
    "data.patches_per_epoch=8",
    "trainer.max_steps=2",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
)


@pytest.fixture
def run_train(program: Callable[..., Path], photographs_path: Path) -> Callable[..., Path]:
    def run(run_name: str, *overrides: str) -> Path:
        data = f"data.path={photographs_path}"
        return program(train.main, run_name, *_TINY, "trainer.devices=1", data, *overrides)

    return run


def _message(run: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 1
    return capsys.readouterr().err


@pytest.mark.slow
def test_train_evaluate_resume(
    run_train: Callable[..., Path],
    program: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = run_train("first", "data.patches_per_epoch=4")
    left = {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()}
    assert left >= {
        "config.yaml",
        "results.json",
        "comparison.png",
        "csv/metrics.csv",
        "checkpoints/last.ckpt",
    }
    last = first / "checkpoints" / "last.ckpt"
    printed = capsys.readouterr().out
    assert "astronaut" in printed
    assert f"resume={last} trainer.max_steps=4" in printed

    scored = program(evaluate.main, "scored", f"checkpoint={last}", "trainer.devices=1")
    pictures, again = (
        json.loads((folder / "results.json").read_text())["pictures"] for folder in (first, scored)
    )
    for name, scores in pictures.items():
        assert again[name] == pytest.approx(scores, abs=1e-3)

    second = run_train(
        "second", f"resume={last}", "data.patches_per_epoch=4", "trainer.max_steps=3"
    )
    steps = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        for run in (first, second)
    ]
    assert steps == [2, 3]
    # Not the first run's best.
    assert json.loads((second / "results.json").read_text())["checkpoint"].startswith(str(second))

    wider = _message(lambda: run_train("wider", f"resume={last}", "net.channels=8"), capsys)
    assert "net.head.weight expected [8, 3, 3, 3], got [4, 3, 3, 3]" in wider
    assert not (first.parent / "wider" / "config.yaml").exists()


@pytest.mark.slow
def test_best_checkpoint_is_tested(run_train: Callable[..., Path]) -> None:
    # Four steps are an epoch, after which the pictures of `val` are scored.
    run_dir = run_train("validated", "trainer.max_steps=5")
    results = json.loads((run_dir / "results.json").read_text())
    assert results["checkpoint"] == str(run_dir / "checkpoints" / "best.ckpt")
    header = (run_dir / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    stable = {f"{stage}/{name}" for stage in ("val", "test") for name in ("psnr", "ssim")}
    stable |= {f"{stage}/psnr_{name}" for stage in ("val", "test") for name in ("bicubic", "gain")}
    assert stable <= set(header)


def test_damaged_data_is_a_message(
    run_train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.h5"
    path.write_bytes(b"\x89HDF")
    message = _message(lambda: run_train("damaged", f"data.path={path}"), capsys)
    assert message.startswith(f"DataFileError: {path} is not a usable file of photographs.")
    assert path.read_bytes() == b"\x89HDF"


def test_divergence_is_a_message(
    run_train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("optimizer.lr=1e30", "trainer.max_steps=4")
    message = _message(lambda: run_train("diverged", *options), capsys)
    assert "NonFiniteError: training stopped at step" in message
    assert not list((tmp_path / "diverged").rglob("*.ckpt"))
    assert not (tmp_path / "diverged" / "results.json").exists()


def test_evaluate_without_checkpoint(
    program: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    message = _message(lambda: program(evaluate.main, "none"), capsys)
    assert "Expected checkpoint=PATH" in message


def _command(module: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    # Neither rank may take the test's own settings for its own.
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    command = [sys.executable, "-m", module, *overrides]
    return subprocess.run(
        command,
        cwd=CONFIG_DIR.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_unknown_experiment_lists_the_known(
    program: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    message = _message(lambda: program(train.main, "none", "experiment=nope"), capsys)
    assert "super_resolution" in message.partition("Available options")[2]


def test_unknown_key_is_named(
    program: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    message = _message(lambda: program(train.main, "none", "optimizer.rate=1"), capsys)
    assert "Key 'rate' is not in struct" in message


@pytest.mark.parametrize(
    ("main", "command"),
    [
        (train.main, "python -m zoo.train experiment=super_resolution strategy=ddp"),
        (evaluate.main, "python -m zoo.evaluate checkpoint=PATH"),
    ],
)
def test_help_gives_commands(
    main: Callable[[], None],
    command: str,
    program: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        program(main, "none", "--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert command in printed
    # The end of the help is the configuration itself.
    assert "_target_: lightning.Trainer" in printed


@pytest.mark.slow
def test_two_ranks_score_each_picture_once(
    photographs_path: Path, tmp_path: Path, program: Callable[..., Path]
) -> None:
    run_dir = tmp_path / "two"
    options = (*_TINY[1:], "strategy=ddp", f"data.path={photographs_path}")
    finished = _command("zoo.train", *options, f"hydra.run.dir={run_dir}")
    assert finished.returncode == 0, finished.stderr
    last = run_dir / "checkpoints" / "last.ckpt"
    one_rank = program(evaluate.main, "one", f"checkpoint={last}", "trainer.devices=1")
    two, one = (
        json.loads((folder / "results.json").read_text())["mean"] for folder in (run_dir, one_rank)
    )
    assert two == pytest.approx(one, abs=1e-3)
    assert not list(tmp_path.glob("outputs"))


@pytest.mark.slow
def test_nan_on_one_rank_stops_both(photographs_path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "poisoned"
    net = "net._target_=tests.zoo.nets.PoisonedOnRankOne"
    options = (*_TINY[1:], "strategy=ddp", f"data.path={photographs_path}", net)
    finished = _command("zoo.train", *options, "trainer.max_steps=9", f"hydra.run.dir={run_dir}")
    assert finished.returncode != 0
    for rank in (0, 1):
        assert f"[rank {rank}] NonFiniteError: training stopped at step 2" in finished.stderr
    assert not (run_dir / "results.json").exists()
    # Of the validation after step 2.
    checkpoint = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
