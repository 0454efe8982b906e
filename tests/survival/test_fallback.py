"""Damaged checkpoints, full disks and other numbers of ranks, seen from a Trainer on all ranks."""

from __future__ import annotations

import resource
import signal
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_gradsched import checkpoint_file
from lightning_gradsched.preemption import EXIT_CODE
from tests import measured
from tests.ranks import errors_of_ranks, run_ranks
from tests.survival.jobs import BATCH_SIZE, MODULES, N_SAMPLES, Net, Trouble, trainer
from tests.survival.test_checkpoint_file import damage


def saving(folder: str, every: int = 2) -> ModelCheckpoint:
    """Writes ``last.ckpt`` over and over."""
    return ModelCheckpoint(dirpath=folder, every_n_train_steps=every, save_top_k=0, save_last=True)


def fit(rank: int, folder: str, resume: Any = None, n_steps: int = 5) -> tuple[Any, list[str]]:
    """The steps that were trained, and the warnings that name a checkpoint."""
    pl.seed_everything(rank, verbose=False)
    net = Net()
    run = trainer(folder, callbacks=[saving(folder)], enable_checkpointing=True, max_steps=n_steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(net, ckpt_path=resume)
    said = [str(w.message) for w in caught if ".ckpt" in str(w.message)]
    return [step for _, step, _ in net.losses], said


@pytest.mark.parametrize("what", ["truncated", "flipped", "empty"])
def test_the_one_before_is_taken_on_all_ranks(what: str, tmp_path: Path) -> None:
    run_ranks(2, fit, str(tmp_path))
    last, before = tmp_path / "last.ckpt", tmp_path / "last.before1.ckpt"
    assert last.exists()
    damage(last, what)
    start_s = time.monotonic()
    (steps, said), (others, _) = run_ranks(2, fit, str(tmp_path), str(last))
    assert steps == others == [2, 3, 4], "of steps 2 and 4, which were saved, the first"
    (warning,) = said
    assert warning.startswith(f"{last} is damaged (")
    assert warning.endswith(f"Resuming from the one before, {before}.")
    measured.record(warning, time.monotonic() - start_s, 2)


def test_where_none_is_whole_all_are_named_on_all_ranks(tmp_path: Path) -> None:
    run_ranks(2, fit, str(tmp_path))
    for path in tmp_path.glob("*.ckpt"):
        damage(path, "truncated")
    for message in errors_of_ranks(2, fit, str(tmp_path), str(tmp_path / "last.ckpt")):
        assert message.startswith("CheckpointError: no checkpoint can be read: ")
        assert "last.ckpt is damaged (" in message
        assert "last.before1.ckpt is damaged (" in message


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    run_ranks(2, fit, str(tmp_path))
    for message in errors_of_ranks(2, fit, str(tmp_path), str(tmp_path / "lsat.ckpt")):
        assert message.startswith("FileNotFoundError: Checkpoint file not found: ")


class RunsCode:
    def __reduce__(self) -> Any:
        return (print, ("harm",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    run_ranks(2, fit, str(tmp_path))
    path = tmp_path / "last.ckpt"
    evil = {**checkpoint_file.read(path), "hyper_parameters": {"x": RunsCode()}}
    torch.save(evil, path)
    for message in errors_of_ranks(2, fit, str(tmp_path), str(path)):
        assert message.startswith(f"CheckpointError: {path} is whole, but holds more than tensors")


class DiskFills(Callback):
    """From ``step`` on, rank 0 can write no file of more than a KiB."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))


def fit_on_a_disk_that_fills(rank: int, folder: str) -> None:
    callbacks = [saving(folder), DiskFills(3)]
    try:
        trainer(folder, callbacks=callbacks, enable_checkpointing=True).fit(Net())
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_is_an_error_on_all_ranks_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    for message in errors_of_ranks(2, fit_on_a_disk_that_fills, str(tmp_path)):
        assert message.startswith(f"CheckpointError: rank 0: the checkpoint {tmp_path}/last.ckpt")
        assert "could not be written: OSError: [Errno 27] File too large" in message
    (path,) = tmp_path.glob("*.ckpt")
    assert checkpoint_file.read(path)["global_step"] == 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def fit_ranks(rank: int, folder: str, module: str, n_ranks: int, resume: Any, trouble: Any) -> Any:
    callbacks = [Trouble(*trouble)] if trouble else []
    pl.seed_everything(rank, verbose=False)
    net = MODULES[module]()
    run = trainer(folder, devices=n_ranks, callbacks=callbacks, max_epochs=2)
    code = None
    try:
        run.fit(net, ckpt_path=resume)
    except SystemExit as exit:
        code = exit.code
    return code, net.seen, run.current_epoch


@pytest.mark.parametrize(
    ("module", "before", "after"), [("net", 2, 1), ("by_zoo", 2, 3), ("by_zoo", 1, 2)]
)
def test_with_another_number_of_ranks_each_sample_comes_once_an_epoch(
    module: str, before: int, after: int, tmp_path: Path
) -> None:
    # In the middle of the first epoch: 24 of the 48 samples are seen.
    batch = N_SAMPLES // (2 * BATCH_SIZE * before)
    trouble = (int(signal.SIGTERM), batch, 0)
    first = run_ranks(before, fit_ranks, str(tmp_path), module, before, None, trouble)
    rest = run_ranks(after, fit_ranks, str(tmp_path), module, after, "hpc", None)
    assert first[0][0] == EXIT_CODE
    seen = Counter(tuple(sample) for _, samples, _ in (*first, *rest) for sample in samples)
    assert seen == {(epoch, i): 1 for epoch in range(2) for i in range(N_SAMPLES)}
    assert [epoch for _, _, epoch in rest] == [2] * after
