"""Says how fast the data come, and how long training waits for them."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from zoo.data.loader import Counters, Loader


class DataThroughput(Callback):
    """Logs, on every rank for itself and for the logger on rank 0, since the last time:

    - `data/samples_per_s` and `data/GB_per_s`: what this rank has consumed;
    - `data/wait_share`: the part of the time in which it waited for a batch. Near 0 the data are
      fast enough; near 1 more workers, staging or another layout would help.

    A loader other than `zoo.data.loader.Loader` is left alone. `data.dummy=true` shows what a step
    takes without any reading.

    Args:
        every_n_steps: how often; `trainer.log_every_n_steps` by default.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self._before = Counters()
        self._before_s = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer.train_dataloader)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        every = self.every_n_steps or trainer.log_every_n_steps
        loader = trainer.train_dataloader
        if not isinstance(loader, Loader) or not every or (batch_idx + 1) % every:
            return
        rates = _rates(self._before, loader.counters, perf_counter() - self._before_s)
        on_bar = {"data/samples_per_s", "data/wait_share"}
        for name, value in rates.items():
            pl_module.log(name, value, prog_bar=name in on_bar, batch_size=1)
        self._begin(loader)

    def _begin(self, loader: Any) -> None:
        if isinstance(loader, Loader):
            self._before, self._before_s = replace(loader.counters), perf_counter()


def _rates(before: Counters, now: Counters, seconds: float) -> dict[str, float]:
    return {
        "data/samples_per_s": (now.n_samples - before.n_samples) / seconds,
        "data/GB_per_s": (now.nbytes - before.nbytes) / seconds / 1e9,
        "data/wait_share": min(1.0, (now.wait_s - before.wait_s) / seconds),
    }
