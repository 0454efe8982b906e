"""A small training program that can be interrupted, killed and resumed, and its modules."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_gradsched import GradSchedStrategy
from zoo.data.loader import Loader
from zoo.data.sampler import EpochBatches, World

# A thread writes it.
SAVED_BY_S = 60.0
N_SAMPLES = 48
BATCH_SIZE = 4
WIDTH = 6


class PlacedLoader:
    """Batches of this rank, by a permutation a epoch; knows its place, for any number of ranks."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.epoch, self.n_seen = 0, 0  # samples of this epoch that all ranks have been given
        self._is_loaded = False

    def __len__(self) -> int:
        return N_SAMPLES // (BATCH_SIZE * self.world_size)

    def n_steps_left(self) -> int:
        return (N_SAMPLES - self.n_seen) // (BATCH_SIZE * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.n_seen = epoch, 0

    @property
    def sampler(self) -> PlacedLoader:
        return self

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if not self._is_loaded:
            self.n_seen = 0
        self._is_loaded = False
        return self._batches()

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        order = epoch_order(self.epoch)
        while self.n_steps_left():
            first = self.n_seen + self.rank * BATCH_SIZE
            index = torch.tensor(order[first : first + BATCH_SIZE])
            self.n_seen += BATCH_SIZE * self.world_size
            yield {"index": index, "x": torch.stack([sample(int(i)) for i in index])}

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "n_seen": self.n_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.n_seen = state["epoch"], state["n_seen"]
        self._is_loaded = True


def epoch_order(epoch: int) -> list[int]:
    """In which `PlacedLoader` hands the samples out."""
    return np.random.default_rng(epoch).permutation(N_SAMPLES).tolist()


def sample(index: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(index))


class Net(pl.LightningModule):
    """Dropout, and noise out of every generator there is, so that a wrong one keeps showing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1)
        )
        self.losses: list[list[Any]] = []  # [epoch, step, loss]
        self.seen: list[list[int]] = []  # [epoch, index]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["x"]
        noise = np.random.rand() + torch.rand(1).item()
        return F.mse_loss(self.net(x + 0.1 * noise), x.sum(1, keepdim=True).sin())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append([self.current_epoch, self.global_step, loss.item()])
        self.seen += [[self.current_epoch, int(i)] for i in batch["index"]]
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self.net(batch["x"]), batch["x"][:, :1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> PlacedLoader:
        return PlacedLoader(self.trainer.global_rank, self.trainer.world_size)


class Samples(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return N_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"index": torch.tensor(index), "x": sample(index)}


class ByZoo(Net):
    """With the zoo's loader."""

    def train_dataloader(self) -> Loader:
        world = World(self.trainer.world_size, self.trainer.global_rank)
        batches = EpochBatches(N_SAMPLES, BATCH_SIZE, world)
        return Loader(Samples(), batches, start_method="fork")


class Validated(Net):
    def val_dataloader(self) -> DataLoader[Any]:
        samples: Any = [{"x": sample(index)} for index in range(16)]
        return DataLoader(samples, batch_size=BATCH_SIZE)


class Manual(Net):
    """Two optimizers in turns; every third batch has no backward at all."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if batch_idx % 3 == 2:
            return
        optimizer = self.optimizers()[batch_idx % 3]
        loss = self.loss(batch)
        self.losses.append([self.current_epoch, self.global_step, loss.item()])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.AdamW(self.net[0].parameters(), lr=0.02),
            torch.optim.SGD([*self.net[1].parameters(), *self.net[3].parameters()], lr=0.02),
        )


class NoBackward(Net):
    """Nothing is ever reduced: the ranks have no gradient to tell each other anything by."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.losses.append([self.current_epoch, batch_idx, 0.0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


MODULES = {
    "net": Net,
    "by_zoo": ByZoo,
    "validated": Validated,
    "manual": Manual,
    "no_backward": NoBackward,
}


class Trouble(Callback):
    """Sends ``signum`` to one rank at a batch (counted over epochs); another rank is slow.

    ``signum`` 0: an exception; negative: its launcher gets it first, as where a node is lost.
    ``rank`` None: whichever has this callback. ``folder``, if given, gets the time of it.
    ``awaits_save``: not before a checkpoint, which a thread writes, is there.
    """

    def __init__(
        self,
        signum: int,
        batch: int,
        rank: int | None,
        slow_rank: int = -1,
        folder: str = "",
        awaits_save: bool = False,
    ) -> None:
        self.signum, self.batch, self.rank, self.slow_rank = signum, batch, rank, slow_rank
        self.folder, self.awaits_save = folder, awaits_save
        self.n_batches = 0

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.n_batches += 1
        if trainer.global_rank == self.slow_rank:
            time.sleep(0.05)
        if self.n_batches == self.batch and self.rank in (trainer.global_rank, None):
            if self.awaits_save:
                _wait_for_checkpoint(Path(self.folder, "checkpoints"))
            if self.folder:
                Path(self.folder, "fault_at").write_text(str(time.time()))
            if not self.signum:
                raise ZeroDivisionError("no such luck")
            if self.signum < 0:
                os.kill(os.getppid(), -self.signum)
            os.kill(os.getpid(), abs(self.signum))


def _wait_for_checkpoint(folder: Path) -> None:
    until_s = time.monotonic() + SAVED_BY_S
    while not list(folder.glob("*.ckpt")):
        if time.monotonic() > until_s:
            raise TimeoutError(f"expected a checkpoint in {folder} within {SAVED_BY_S:g} s")
        time.sleep(0.05)


def trainer(folder: str, strategy: Any = None, devices: int = 2, **options: Any) -> pl.Trainer:
    warnings.simplefilter("ignore")  # Lightning's about how it was started
    return pl.Trainer(
        **{
            "strategy": strategy or GradSchedStrategy(planner="ddp", stall_timeout_s=20.0),
            "accelerator": "cpu",
            "devices": devices,
            "max_epochs": 3,
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def main(folder: str, options: dict[str, Any]) -> None:
    """As a program, under torchrun or alone: trains, leaves what each rank saw in ``folder``."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) + options.get("attempt", 0)
    callbacks: list[Any] = [
        ModelCheckpoint(
            dirpath=f"{folder}/checkpoints", save_last=True, every_n_train_steps=2, save_top_k=0
        )
    ]
    if attempt == 0 and "trouble" in options:
        awaits_save = options.get("awaits_save", False)
        callbacks.append(Trouble(*options["trouble"], folder=folder, awaits_save=awaits_save))
    pl.seed_everything(7 + rank, verbose=False)
    module = MODULES[options.get("module", "net")]()
    job = trainer(
        folder,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", options.get("devices", 1))),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        enable_checkpointing=True,
        callbacks=callbacks,
        **options.get("trainer", {}),
    )
    try:
        job.fit(module, ckpt_path=options.get("resume", "last"))
    finally:
        seen = {"losses": module.losses, "seen": module.seen, "world_size": job.world_size}
        Path(folder, f"rank{job.global_rank}_attempt{attempt}.json").write_text(json.dumps(seen))
    if job.global_rank == 0:
        torch.save(weights(module), Path(folder, "weights.pt"))


if __name__ == "__main__":
    # Where a shell started the tests in the background, Ctrl-C is ignored from the start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1], json.loads(sys.argv[2]))
