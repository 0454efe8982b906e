"""What the strategy adds to a checkpoint, and how it takes a run up again from one.

[Note: when generators are set] In the middle of an epoch, right before the next batch is fetched:
making the loader's iterator again may have drawn from them. Between two epochs before the iterator
is made, as the run that went on has made it then too.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gradsched import checkpoint_file
from lightning_gradsched.checkpoint_io import SafeCheckpointIO
from lightning_gradsched.errors import CheckpointError
from lightning_gradsched.rank_state import packed, rng_state, set_rng_state, unpacked
from lightning_gradsched.runtime.scheduler import GradientScheduler

KEY = "gradsched"

_log = logging.getLogger("lightning_gradsched")


class Resume:
    """The part of a checkpoint that is this package's, of one strategy. Methods are collective."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._own: dict[str, Any] | None = None  # this rank's, until it has been put back
        self._is_between_epochs = False
        self._saved_world_size: int | None = None
        self.plan: dict[str, Any] | None = None
        self._lagged: dict[str, Tensor] | None = None  # gradients that are still to be applied

    def add_to(self, checkpoint: dict[str, Any], scheduler: GradientScheduler | None) -> None:
        """Put every rank's generators and loaders into ``checkpoint``, and the engine's plan."""
        own = {"rng": rng_state(self._strategy.root_device), "loaders": _loaders(checkpoint)}
        checkpoint[KEY] = {
            "world_size": self._strategy.world_size,
            "ranks": gather(self._strategy, own),
            "plan": None if scheduler is None else scheduler.plan_state(),
            "lagged": None if scheduler is None else scheduler.lagged_state(),
        }

    def take_from(self, checkpoint: dict[str, Any], *, by_steps: bool) -> None:
        """Note what is to be put back; ``by_steps``: the run's length is counted in steps."""
        self.forget()
        state = checkpoint.get(KEY)
        if state is None:
            return
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        self._is_between_epochs = not by_steps and epochs["processed"] == epochs["started"]
        self.plan, self._lagged = state["plan"], state.get("lagged")
        self._saved_world_size = state["world_size"]
        if self._saved_world_size == self._strategy.world_size:
            self._own = state["ranks"][self._strategy.global_rank]
            _set_loaders(checkpoint, self._own["loaders"])
        else:
            _log.warning(
                "the checkpoint is of %d ranks, this run has %d: random generators begin anew, and"
                " what is left of the epoch is shared out by loaders that keep their place",
                self._saved_world_size,
                self._strategy.world_size,
            )

    def put_back_lagged(self, scheduler: GradientScheduler) -> None:
        """Before the first backward of ``scheduler``: gradients that are still to be applied."""
        if self._lagged is None:
            return
        if self._strategy.config.gradient_lag:
            scheduler.restore_lagged(self._lagged)
        elif self._strategy.global_rank == 0:
            _log.warning(
                "the checkpoint is of a run with gradient_lag=1, this one has 0: the gradients of"
                " its last step are left out"
            )

    def forget(self) -> None:
        self._own, self.plan, self._saved_world_size = None, None, None
        self._lagged = None
        self._is_between_epochs = False

    def before_iterator(self) -> None:
        """Before the training loader's iterator is made; see [Note: when generators are set]."""
        if self._is_between_epochs:
            self._set_generators()

    def before_first_batch(self, trainer: Any) -> None:
        if not self._is_between_epochs:
            self._set_generators()
            if self._saved_world_size not in (None, self._strategy.world_size):
                _count_batches_anew(trainer, self._saved_world_size or 1)
        self.forget()

    def _set_generators(self) -> None:
        if self._own is not None:
            set_rng_state(self._own["rng"], self._strategy.root_device)


def read(strategy: Any, io: SafeCheckpointIO, path: Path, *, may_fall_back: bool) -> Path:
    """The newest checkpoint, from ``path`` on, that is whole on all ranks. Collective.

    Raises, on every rank:
        FileNotFoundError: rank 0 finds no ``path``.
        CheckpointError: no file will do; all are named.
    """
    io.flush()
    found: list[str] = strategy.broadcast(_candidates(path, may_fall_back))
    if not found:
        raise FileNotFoundError(f"Checkpoint file not found: {path}")
    faults: list[str] = []
    for candidate in found:
        fault = _fault_on_any_rank(strategy, Path(candidate))
        if not fault:
            if faults and strategy.global_rank == 0:
                warnings.warn(
                    f"{'; '.join(faults)}. Resuming from the one before, {candidate}.",
                    stacklevel=2,
                )
            return Path(candidate)
        faults.append(f"{candidate} is damaged ({fault})")
    raise CheckpointError(
        f"no checkpoint can be read: {'; '.join(faults)}. Start anew, or from another folder."
    )


def gather(strategy: Any, value: Any) -> list[Any]:
    """Every rank's ``value``, by rank; of tensors and plain values."""
    data = packed(value)
    device = strategy.root_device
    sizes = strategy.all_gather(torch.tensor([len(data)], device=device)).view(-1).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    rows: Tensor = strategy.all_gather(padded.to(device)).view(len(sizes), -1).cpu()
    return [unpacked(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def raise_together(strategy: Any, error: Exception | None) -> None:
    """Raise a ``CheckpointError`` on every rank if one of them has an error. Collective."""
    if strategy.reduce_boolean_decision(error is None, all=True):
        return
    faults = gather(strategy, "" if error is None else str(error))
    rank = next(rank for rank, fault in enumerate(faults) if fault)
    raise CheckpointError(f"rank {rank}: {faults[rank]}") from error


def _candidates(path: Path, may_fall_back: bool) -> list[str]:
    """``path``, then the files of its folder that are older, the newest first."""
    if not path.exists():
        return []
    if not may_fall_back:
        return [str(path)]
    newest_ns = path.stat().st_mtime_ns
    others = [p for p in path.parent.glob(f"*{path.suffix}") if p.is_file() and not p.is_symlink()]
    others = [p for p in others if not p.samefile(path) and p.stat().st_mtime_ns <= newest_ns]
    return [str(path), *map(str, sorted(others, key=lambda p: -p.stat().st_mtime_ns))]


def _fault_on_any_rank(strategy: Any, path: Path) -> str:
    fault = checkpoint_file.fault_of(path)
    if strategy.reduce_boolean_decision(not fault, all=True):
        return ""
    faults: list[str] = gather(strategy, fault)
    rank = next(rank for rank, text in enumerate(faults) if text)
    return faults[rank] if all(faults) else f"{faults[rank]}, on rank {rank}"


def _loaders(checkpoint: dict[str, Any]) -> list[Any]:
    state: list[Any] = _fit_loop(checkpoint).get("combined_loader", [])
    return state


def _set_loaders(checkpoint: dict[str, Any], states: list[Any]) -> None:
    if states:
        _fit_loop(checkpoint)["combined_loader"] = states


def _fit_loop(checkpoint: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint["loops"]["fit_loop"]["state_dict"]
    return state


def _count_batches_anew(trainer: Any, saved_world_size: int) -> None:
    """Say how far the epoch is in batches of as many ranks as there are now.

    A loader that knows tells how many steps it has left (``n_steps_left()``, its own or its
    sampler's); of others the same share of the epoch is taken to be over.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    n_batches = trainer.num_training_batches
    if n_batches == float("inf"):
        return
    left = [_n_steps_left(loader) for loader in trainer.fit_loop._combined_loader.flattened]
    known = [n for n in left if n is not None]
    if known:
        n_done = n_batches - max(known)
    else:
        n_done = progress.processed * saved_world_size // trainer.world_size
    n_done = min(max(n_done, 0), n_batches)
    progress.ready = progress.started = progress.processed = progress.completed = n_done
    if trainer.fit_loop.epoch_loop.restarted_on_train_batch_end:
        # Saved by a callback before its batch was counted as completed, which Lightning then does.
        progress.completed -= 1


def _n_steps_left(loader: Any) -> int | None:
    for holder in (loader, getattr(loader, "sampler", None)):
        count = getattr(holder, "n_steps_left", None)
        if count is not None:
            return int(count())
    return None
