"""What the ranks of the data module's tests do."""

from __future__ import annotations

import multiprocessing as mp
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from tests.zoo.data.shardset import SCHEMA
from zoo.callback.data_throughput import DataThroughput
from zoo.callback.exact_resume import ExactResume
from zoo.data.hdf5_shards import HDF5DataModule


class Recorder(pl.LightningModule):
    """Trains a little and remembers which samples it saw in which epoch."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.seen: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []
        self.fail_at = fail_at

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.fail_at == self.global_step:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, batch["index"].tolist()))
        return self.layer(batch["image"].mean((2, 3))).square().mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-5)


class SaveAt(Callback):
    """Saves a checkpoint after so many steps, then stops."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def datamodule(root: Path, **options: Any) -> HDF5DataModule:
    return HDF5DataModule(
        str(root), SCHEMA, **{"split": (1.0, 0, 0), "num_workers": 0, "batch_size": 2} | options
    )


def trainer(n_ranks: int, callbacks: list[Callback], **options: Any) -> pl.Trainer:
    # Lightning says how it was started, and that tests have few workers.
    warnings.simplefilter("ignore")
    return pl.Trainer(
        accelerator="cpu",
        devices=n_ranks,
        strategy="ddp" if n_ranks > 1 else "auto",
        callbacks=[ExactResume(), DataThroughput(1), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def fit(
    rank: int,
    n_ranks: int,
    root: Path,
    callbacks: list[Callback],
    ckpt_path: Path | None,
    data: dict[str, Any],
    fail_at: int | None = None,
    **options: Any,
) -> tuple[list[tuple[int, list[int]]], list[int], int]:
    """What a rank saw in training and in validation, and the last global step."""
    # Ranks are daemons, which may have no children of their own: loaders must.
    mp.current_process()._config["daemon"] = False
    module = Recorder(fail_at)
    run = trainer(n_ranks, callbacks, **{"max_epochs": 3} | options)
    run.fit(module, datamodule(root, **data), ckpt_path=ckpt_path)
    return module.seen, module.validated, run.global_step


def fit_two(rank: int, *args: Any) -> Any:
    return fit(rank, 2, *args)


def set_up(rank: int, root: Path, data: dict[str, Any]) -> list[int]:
    """The samples of each rank's training split, as the data module sets it up."""
    module = datamodule(root, **data)
    run = trainer(2, [])
    module.trainer = run
    module.prepare_data()
    module.setup("fit")
    loaders = [module.train_dataloader()]
    return [index for loader in loaders for batch in loader for index in batch["index"].tolist()]


def set_up_climate(rank: int, root: Path, data: dict[str, Any]) -> Any:
    """What two ranks agree on: the scaling, the classes' shares, and each its training samples."""
    from zoo.data.climate import ClimateDataModule

    module = ClimateDataModule(str(root), num_workers=0, **data)
    module.trainer = trainer(2, [])
    module.prepare_data()
    module.setup("fit")
    seen = [i for batch in module.train_dataloader() for i in batch["index"].tolist()]
    return module.state_dict(), seen
