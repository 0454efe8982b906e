"""GradSchedMonitor: the overlap report's numbers as curves in the user's logger."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_gradsched.core.report import OverlapReport
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.strategy import GradSchedMixin


class GradSchedMonitor(pl.Callback):
    """Logs rank 0's overlap report to every logger whenever another step has been recorded.

    The columns are ``gradsched/exposed_s``, ``gradsched/comm_s`` and ``gradsched/step_s`` in
    seconds, and ``gradsched/overlap``, 0 to 1: medians over the recorded steps, as in
    ``trainer.strategy.report()``. How often is the strategy's ``record_every_n_steps``, whatever
    the Trainer's ``log_every_n_steps``. Ranks exchange nothing for it; on a GPU rank 0's host waits
    for the recorded step to end.

    Args:
        progress_bar: show ``exposed_s`` in the progress bar too.

    Raises:
        GradSchedError: when a fit begins with another strategy, with one that records no step, or
            without anything to log to.
    """

    def __init__(self, *, progress_bar: bool = False) -> None:
        self._progress_bar = progress_bar
        self._report: OverlapReport | None = None
        self._next_step = 0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._report, self._next_step = None, 0
        if _strategy(trainer).config.record_every_n_steps == 0:
            raise GradSchedError(
                "GradSchedMonitor: the strategy measures no step; set its record_every_n_steps to"
                " 1 or more, got 0, or remove the callback"
            )
        if not trainer.loggers and not self._progress_bar:
            raise GradSchedError(
                "GradSchedMonitor: the Trainer has no logger; give it one, such as"
                " Trainer(logger=CSVLogger('logs')), or GradSchedMonitor(progress_bar=True)"
            )

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not trainer.is_global_zero:
            return
        if trainer.global_step >= self._next_step:
            self._look(trainer)
        if self._progress_bar and self._report is not None:
            # Lightning forgets what a batch does not log.
            pl_module.log(
                "exposed_s",
                self._report.exposed_s,
                prog_bar=True,
                logger=False,
                rank_zero_only=True,
            )

    def _look(self, trainer: pl.Trainer) -> None:
        """Log the report if it is new, and look again when the next step is due."""
        strategy = _strategy(trainer)
        try:
            report = strategy.report()
        except GradSchedError:
            return  # Nothing is recorded yet, or not since the plan changed.
        if report == self._report:
            return
        self._report = report
        self._next_step = trainer.global_step + strategy.config.record_every_n_steps
        # The step that Lightning's own metrics are logged at.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(_metrics(report), step=step)


def _strategy(trainer: pl.Trainer) -> GradSchedMixin:
    strategy = trainer.strategy
    if not isinstance(strategy, GradSchedMixin):
        raise GradSchedError(
            f"GradSchedMonitor reads gradsched's reports, got strategy {type(strategy).__name__}:"
            ' give Trainer(strategy="gradsched"), or remove the callback'
        )
    return strategy


def _metrics(report: OverlapReport) -> dict[str, float]:
    names = ("exposed_s", "overlap", "comm_s", "step_s")
    return {f"gradsched/{name}": getattr(report, name) for name in names}
