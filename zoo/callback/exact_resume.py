"""Brings Lightning's place within an epoch in line with the loader's when a run is resumed."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from zoo.data.sampler import EpochBatches, Leg, World


class ExactResume(Callback):
    """Lets a run go on to the sample in the two cases that Lightning alone gets wrong.

    - A checkpoint from within a step (an exception, a signal): the loader has handed out a batch
      that was never trained on. It is handed out again.
    - Other ranks, nodes or batches than before: Lightning counts steps, and `n` steps of the old
      ranks are not `n` of the new. Its count is set to what leaves as many steps as there are
      samples left.

    The loader's state is the one that `zoo.data.loader.Loader` wrote; other loaders are left alone.
    """

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        states = loop.get("state_dict", {}).get("combined_loader", [])
        ours = [state for state in states if state and "legs" in state]
        if len(ours) != 1 or len(states) != 1:
            return
        progress = loop["epoch_loop.batch_progress"]["current"]
        _take_back(ours[0]["legs"], progress["ready"] - progress["processed"])
        sampler = _sampler_of(trainer)
        if sampler is not None and _is_other(ours[0], sampler):
            _rescale(progress, ours[0], sampler)


def _take_back(legs: list[list[int]], n_steps: int) -> None:
    """Steps that were handed out and not trained on."""
    *rest, n_done = legs[-1]
    legs[-1] = [*rest, max(0, n_done - n_steps)]


def _sampler_of(trainer: L.Trainer) -> EpochBatches | None:
    loader = trainer.datamodule.train_dataloader() if _makes_loaders(trainer) else None
    sampler = getattr(loader, "sampler", None)
    return sampler if isinstance(sampler, EpochBatches) else None


def _makes_loaders(trainer: L.Trainer) -> bool:
    return getattr(trainer, "datamodule", None) is not None


def _is_other(state: dict[str, Any], sampler: EpochBatches) -> bool:
    world: World = sampler.world
    return Leg(*state["legs"][-1])[:3] != (world.world_size, world.n_nodes, sampler.batch_size)


def _rescale(progress: dict[str, int], state: dict[str, Any], sampler: EpochBatches) -> None:
    sampler.load_state_dict(state)
    shift = len(sampler) - sampler.n_steps_left() - progress["processed"]
    progress.update({key: max(0, value + shift) for key, value in progress.items()})
