"""A job of the tests that goes on where it was: `python -m tests.slurm.interrupted FOLDER N_STEPS`.

Every loss is written as soon as it is known, so that no kind of end hides it. With SLOW_RANK in the
environment that rank takes longer over every batch than the others; FIRST_BATCH_S is the time of a
batch from step BEFORE_STEP on, until the job has been requeued.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import sleep
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.slurm.disturbed import BEFORE_STEP
from tests.survival.jobs import Net, trainer, weights

RANK = int(os.environ["SLURM_PROCID"])
BATCH_S, SLOW_BATCH_S = 0.05, 0.3
SAVE_EVERY_N_STEPS = 4


class Diary(Callback):
    """One line of JSON a step: the attempt, the step, this rank's loss and samples."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"rank_{RANK}.jsonl"
        self._attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._pause_s = SLOW_BATCH_S if os.environ.get("SLOW_RANK") == str(RANK) else BATCH_S

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        pause_s = self._pause_s
        if self._attempt == 0 and trainer.global_step >= BEFORE_STEP:
            pause_s = float(os.environ.get("FIRST_BATCH_S", pause_s))
        sleep(pause_s)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        line = [self._attempt, trainer.global_step, outputs["loss"].item(), batch["index"].tolist()]
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main(folder: Path, n_steps: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(7 + RANK, verbose=False)
    saves = ModelCheckpoint(
        dirpath=folder / "checkpoints", every_n_train_steps=SAVE_EVERY_N_STEPS, save_top_k=-1
    )
    job = trainer(
        str(folder),
        devices=1,
        num_nodes=int(os.environ["SLURM_STEP_NUM_NODES"]),
        enable_checkpointing=True,
        callbacks=[saves, Diary(folder)],
        max_steps=n_steps,
        max_epochs=-1,
    )
    found = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    module = Net()
    job.fit(module, ckpt_path=found[-1] if found else None)
    if RANK == 0:
        torch.save(weights(module), folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
