"""The strategy's checkpoints: every error reaches every rank, and a damaged file is replaced."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gradsched import resume
from lightning_gradsched.checkpoint_io import SafeCheckpointIO
from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.errors import CheckpointError
from lightning_gradsched.preemption import Preemption
from lightning_gradsched.runtime.scheduler import GradientScheduler

if TYPE_CHECKING:
    _Base = DDPStrategy
else:
    _Base = object

_log = logging.getLogger("lightning_gradsched")


class CheckpointMixin(_Base):
    """The part of the strategy that saves and loads."""

    _scheduler: GradientScheduler | None
    _preemption: Preemption | None
    config: GradSchedConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resume = resume.Resume(self)

    @property
    @override
    def checkpoint_io(self) -> Any:
        """``SafeCheckpointIO``, unless the Trainer was given another plugin."""
        if self._checkpoint_io is None:
            self._checkpoint_io = SafeCheckpointIO()
        return super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: Any) -> None:
        self._checkpoint_io = io

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Collective, as ``Trainer.save_checkpoint`` is; an error of rank 0 is one on every rank.

        During ``fit`` the file is written by a thread, else before this returns.

        Raises:
            CheckpointError: this or an earlier checkpoint could not be written.
        """
        if self._is_alone:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            self._flush_checkpoints()
            return
        if "optimizer_states" in checkpoint:  # not where weights alone are saved
            self._resume.add_to(checkpoint, self._scheduler)
        error = None
        try:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            if self.lightning_module is None or not self.lightning_module.trainer.training:
                self._flush_checkpoints()
        except Exception as raised:  # whatever it is, the other ranks must learn of it
            error = raised
        resume.raise_together(self, error)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Of ``shard_optimizer``: collective, and whole on rank 0 alone, as Lightning has it."""
        if self.config.shard_optimizer and self._is_alone:
            raise CheckpointError(
                "shard_optimizer: the optimizer's state is spread over the ranks, and a rank that"
                " saves because of an exception has its own part alone: resume from the checkpoint"
                " before, or save with save_weights_only=True"
            )
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return state

    @property
    def _is_alone(self) -> bool:
        """Whether this rank saves because of an exception, which the others may not have."""
        module = self.lightning_module
        is_preempted = self._preemption is not None and self._preemption.is_stopping
        return module is not None and bool(module.trainer.interrupted) and not is_preempted

    @override
    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Collective. Where training goes on, a damaged file is replaced by the one before it."""
        io = self.checkpoint_io
        module = self.lightning_module
        is_fit = module is not None and module.trainer.state.fn == TrainerFn.FITTING
        if isinstance(io, SafeCheckpointIO) and "://" not in str(checkpoint_path):
            path = Path(self.broadcast(str(checkpoint_path)))
            checkpoint_path = resume.read(self, io, path, may_fall_back=is_fit)
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        if is_fit and module is not None:
            self._resume.take_from(checkpoint, by_steps=module.trainer.max_steps != -1)
        return checkpoint

    def finish_checkpoints(self) -> None:
        """Return when all checkpoints are on the disk. Collective.

        Raises:
            CheckpointError: on every rank, if one could not be written.
        """
        error = None
        try:
            self._flush_checkpoints()
        except Exception as raised:  # as above
            error = raised
        resume.raise_together(self, error)

    def _flush_checkpoints(self) -> None:
        io = self.checkpoint_io
        if isinstance(io, SafeCheckpointIO):
            io.flush()

    @override
    def teardown(self) -> None:
        self._resume.forget()
        try:
            self._flush_checkpoints()
        except CheckpointError as error:  # with that by which fit ends: raised, it would hide it
            _log.error("%s", error)
        super().teardown()
