"""Samples and operations a second, and their share of what the device could do."""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_leaves

from zoo.callback.throughput_peak import compute_dtype, measure_peak_flop_per_s

# Backward makes two products where forward makes one: with respect to inputs and to weights.
TRAINING_PER_FORWARD = 3


class Window(NamedTuple):
    """What all ranks did between two readings, the same on every rank.

    Attributes:
        step: the trainer's step at its end.
        samples: over all ranks.
        seconds: of the slowest rank, without validation.
        peak_flop_per_s: of all ranks together.
    """

    step: int
    samples: float
    seconds: float
    peak_flop_per_s: float


class ThroughputMeter(Callback):
    """Logs `throughput/samples_per_s`, `throughput/flop_per_s` and `throughput/peak_share`.

    Over all ranks, every `every_n_steps` steps, in the loggers and the progress bar; a line at the
    end of training. The time is that from batch to batch, with loading and checkpoints, but without
    validation and the first `warmup_steps`.

    [Note: how operations are counted] As for the headline numbers of Laanait et al. 2019: a
    training step counts as three forwards. torch's counter goes over one forward, once, on the
    meta device. The first layer's gradient with respect to the data is not computed in fact, and
    what activation checkpointing computes twice is counted once: it is the model's work, not the
    device's. The peak is that of a product of square matrices in the same precision, measured on
    each rank's device before training, all ranks at once.

    Operations are counted for modules with `forward_flop_per_sample(batch)`; others get samples a
    second only. A batch's samples are the length of its first tensor.

    All ranks must take part: a reading gathers their counts.

    Args:
        every_n_steps: optimizer steps between readings.
        warmup_steps: at the start, left out, one at least: compilation and first allocations.
        peak: measure the device's peak, for a fraction of a second; else there is no `peak_share`.
    """

    def __init__(self, every_n_steps: int = 20, warmup_steps: int = 5, peak: bool = True) -> None:
        if every_n_steps < 1 or warmup_steps < 0:
            raise ValueError(
                f"expected every_n_steps >= 1 and warmup_steps >= 0, got {every_n_steps} and "
                f"{warmup_steps}; try every_n_steps=20"
            )
        self.every_n_steps, self.warmup_steps, self.peak = every_n_steps, warmup_steps, peak
        self.windows: list[Window] = []
        self.flop_per_sample: int | None = None
        self._peak_flop_per_s = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.windows = []
        if self.peak:
            trainer.strategy.barrier()
            self._peak_flop_per_s = measure_peak_flop_per_s(
                trainer.strategy.root_device, compute_dtype(trainer.precision_plugin)
            )
        self._first_step = trainer.global_step + self.warmup_steps
        self._window_step: int | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        count = getattr(pl_module, "forward_flop_per_sample", None)
        if self.flop_per_sample is None and count is not None:
            self.flop_per_sample = TRAINING_PER_FORWARD * count(batch)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if self._window_step is None:
            if step >= self._first_step:
                self._begin(trainer)
            return
        self._samples += n_samples(batch)
        if step - self._window_step >= self.every_n_steps:
            self._read(trainer, pl_module)
            self._begin(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_began_s = _now_s(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._paused_s += _now_s(trainer) - self._validation_began_s

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.windows and trainer.is_global_zero:
            rates = self._rates(Window(0, *(sum(w[i] for w in self.windows) for i in (1, 2)), 0.0))
            peak = self.windows[-1].peak_flop_per_s
            print(_summary(rates, peak, trainer.world_size), flush=True)

    def _begin(self, trainer: L.Trainer) -> None:
        self._window_step, self._samples, self._paused_s = trainer.global_step, 0, 0.0
        self._began_s = _now_s(trainer)

    def _read(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = _now_s(trainer) - self._began_s - self._paused_s
        device, reduce = trainer.strategy.root_device, trainer.strategy.reduce
        sums = torch.tensor([float(self._samples), self._peak_flop_per_s], device=device)
        samples, peak_flop_per_s = reduce(sums, reduce_op="sum").tolist()
        slowest_s = reduce(torch.tensor(seconds, device=device), reduce_op="max").item()
        window = Window(trainer.global_step, samples, slowest_s, peak_flop_per_s)
        self.windows.append(window)
        rates = {f"throughput/{name}": rate for name, rate in self._rates(window).items()}
        pl_module.log_dict(rates, prog_bar=True, logger=False)
        # Not through `log`: that drops what falls between two steps of log_every_n_steps.
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)

    def _rates(self, window: Window) -> dict[str, float]:
        rates = {"samples_per_s": window.samples / window.seconds}
        if self.flop_per_sample is not None:
            rates["flop_per_s"] = rates["samples_per_s"] * self.flop_per_sample
            if window.peak_flop_per_s:
                rates["peak_share"] = rates["flop_per_s"] / window.peak_flop_per_s
        return rates


def n_samples(batch: Any) -> int:
    """The length of a batch's first tensor."""
    return len(next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim))


def _now_s(trainer: L.Trainer) -> float:
    """The clock, once the device has done what it was told."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _summary(rates: dict[str, float], peak_flop_per_s: float, n_ranks: int) -> str:
    text = f"throughput: {rates['samples_per_s']:.1f} samples/s on {n_ranks} rank(s)"
    if "flop_per_s" in rates:
        text += f", {rates['flop_per_s'] / 1e9:.1f} GFLOP/s"
        if peak_flop_per_s:
            share = rates["flop_per_s"] / peak_flop_per_s
            text += f", {share:.0%} of the measured peak of {peak_flop_per_s / 1e9:.1f} GFLOP/s"
    return text
