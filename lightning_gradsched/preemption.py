"""Preemption and time limits: a signal is noted, told to all ranks, and obeyed at a step's end.

[Note: no collective in a handler] Lightning saves inside the signal handler, and tells the others
of SIGTERM there: its collectives meet those of ranks that are elsewhere in the step, and with one
slow rank they hang. Here a handler sets a flag. The next reduction of gradients carries it (see
[Note: the notice]), so that all ranks hear of it in the same step, at no cost in the steps before.
They finish that step and leave Lightning's loop where it would itself for a SIGTERM: after the
validation and the logging of the step, before the next batch is fetched.

[Note: where a run can be taken up] Lightning resumes exactly from the middle of an epoch, where no
validation is due after the step. If one is, or the epoch ends, the ranks go on to the next such
step, all to the same one: they decide by the loop's counters, which are the same everywhere.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_gradsched.resume import gather
from lightning_gradsched.runtime.notice import Notice

# EX_TEMPFAIL of sysexits.h: start it again, and it goes on.
EXIT_CODE = 75
# In batches after which nothing was reduced, how often the ranks ask one another instead.
ASK_EVERY_N_BATCHES = 16
# How many batches more may go by, beyond accumulation, in search of a place to take the run up.
PATIENCE_BATCHES = 16
# Of the checkpoints that preemption has left in a folder, how many are kept.
KEPT = 2

_log = logging.getLogger("lightning_gradsched")


class Preemption(Callback):
    """Ends ``fit`` on all ranks, with a checkpoint, once any rank has got one of ``signals``.

    ``strategy`` puts it among the Trainer's callbacks. After SIGTERM the process exits with
    ``EXIT_CODE``; after the signal by which SLURM announces a time limit the job is requeued too.
    """

    def __init__(self, signals: Iterable[str], strategy: Any) -> None:
        self._signals = {signal.Signals[name] for name in signals}
        self._strategy = strategy
        self._requeue_signal: signal.Signals | None = None
        self._received: set[signal.Signals] = set()
        self._n_reduced = self._n_unreduced = self._n_waited = self._last_step = 0
        self._is_stopping = False

    @property
    def is_stopping(self) -> bool:
        """Whether all ranks are about to leave ``fit``, together."""
        return self._is_stopping

    @property
    def _notice(self) -> Notice:
        notice: Notice = self._strategy.scheduler.notice
        return notice

    def take_over(self, trainer: Any) -> None:
        """Keep Lightning from handling the signals of SLURM; before it would register to."""
        environment = self._strategy.cluster_environment
        if getattr(environment, "auto_requeue", False):
            self._requeue_signal = environment.requeue_signal or signal.SIGUSR1
            self._signals.add(self._requeue_signal)
            environment.auto_requeue = False

    def release(self, trainer: Any) -> None:
        """When ``fit`` has ended; the signals' handlers are Lightning's to put back."""
        vars(trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)

    @override
    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._install(trainer)

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._install(trainer)
        self._n_reduced, self._last_step = self._notice.n_reduced, trainer.global_step
        self._n_unreduced = self._n_waited = 0
        self._is_stopping = False

    @override
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._hear()
        has_stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        if not self._notice.heard or self._is_stopping:
            return
        self._n_waited += 1
        most = PATIENCE_BATCHES + trainer.accumulate_grad_batches
        if _can_be_taken_up(trainer, has_stepped) or (
            self._n_waited > most and not _is_at_the_end(trainer)
        ):
            self._is_stopping = True
            # Obeyed where Lightning obeys its own; it sets this nowhere now.
            trainer._signal_connector.received_sigterm = True

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if not (self._is_stopping and isinstance(exception, SystemExit)):
            return
        path = self._save(trainer)
        outcome = self._outcome(trainer, path)
        if trainer.is_global_zero:
            _log.warning("%s", outcome)
        exception.code = 1 if path is None else self._exit_code()

    def _install(self, trainer: Any) -> None:
        # Lightning brings back, when fit ends, the handlers that were there before.
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in self._signals:
            signal.signal(signum, self._note)
        loop = trainer.fit_loop.epoch_loop
        if signal.SIGTERM in self._signals and hasattr(loop, "_broadcast_sigterm_tensor"):
            # Lightning's way to tell all ranks of it: a broadcast before every step.
            loop._broadcast_sigterm_tensor = _nothing

    def _note(self, signum: int, _frame: Any) -> None:
        """The handler: no lock, no output, no collective."""
        self._received.add(signal.Signals(signum))
        self._notice.given = True

    def _hear(self) -> None:
        """Where batch after batch reduces nothing that could bring the notice, ask for it."""
        if self._notice.n_reduced != self._n_reduced:
            self._n_reduced, self._n_unreduced = self._notice.n_reduced, 0
            return
        self._n_unreduced += 1
        if self._n_unreduced % ASK_EVERY_N_BATCHES == 0:
            self._strategy.scheduler.agree_on_notice()

    def _save(self, trainer: Any) -> Path | None:
        """The checkpoint, on the disk; None, and an error in the log, if it could not be written.

        Under SLURM, Lightning resumes from a file of this name by itself.
        """
        folder = trainer.default_root_dir
        path = Path(
            self._strategy.broadcast(str(trainer._checkpoint_connector.hpc_save_path(folder)))
        )
        try:
            trainer.save_checkpoint(path)
            self._strategy.finish_checkpoints()
        except Exception as error:  # the same on every rank; there is nobody to raise it to
            _log.error("%s: %s", type(error).__name__, error)
            return None
        if trainer.is_global_zero:
            _remove_old(path.parent)
        return path

    def _outcome(self, trainer: Any, path: Path | None) -> str:
        """What became of it, for people; requeues the job on the way."""
        received = gather(self._strategy, [signum.name for signum in self._received])
        who = [f"{name} to rank {rank}" for rank, names in enumerate(received) for name in names]
        begin = f"preempted by {', '.join(who)}: stopped after step {trainer.global_step}"
        if path is None:
            return f"{begin}; no checkpoint could be written, see the error above"
        saved = f"{begin}, saved {path}"
        if self._requeue_signal is not None and self._requeue_signal.name in chain(*received):
            return f"{saved}; {requeue() if trainer.is_global_zero else ''}"
        return (
            f"{saved}; exit code {EXIT_CODE}. To go on: the same command with"
            " Trainer.fit(ckpt_path='hpc'), or that path."
        )

    def _exit_code(self) -> int:
        """0 in the ranks that Lightning's launcher started: it kills rank 0 if one fails."""
        environment = self._strategy.cluster_environment
        is_child = type(environment).__name__ == "LightningEnvironment"
        return 0 if is_child and self._strategy.local_rank > 0 else EXIT_CODE


def _nothing() -> None:
    pass


def _is_at_the_end(trainer: Any) -> bool:
    """Whether no step follows this one."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if 0 <= fit.max_steps <= loop.global_step:
        return True
    is_last_epoch = 0 <= (fit.max_epochs or -1) <= trainer.current_epoch + 1
    return bool(loop.batch_progress.is_last_batch and is_last_epoch)


def _can_be_taken_up(trainer: Any, has_stepped: bool) -> bool:
    """Whether a run that is saved after this batch goes on as if it had not been interrupted."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not has_stepped or loop._is_training_done:
        return False
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        return True  # by the clock, which each rank has for itself
    return not loop._should_check_val_fx(fit._data_fetcher)


def requeue(run: Callable[..., Any] = subprocess.run) -> str:
    """Ask SLURM to run this job again; what came of it, in words."""
    job = job_id()
    try:
        done = run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be requeued: {error}. Next: scontrol requeue {job}"
    if done.returncode != 0:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        return f"job {job} could not be requeued: {reason}. Next: sbatch it again"
    return f"requeued job {job}"


def job_id() -> str:
    """The SLURM job of this process, as ``scontrol`` takes it: a task of an array by its own."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "unknown")


def _remove_old(folder: Path) -> None:
    numbered = {}
    for path in folder.glob("hpc_ckpt_*.ckpt"):
        match = re.fullmatch(r"hpc_ckpt_(\d+)", path.stem)
        if match:
            numbered[int(match[1])] = path
    for number in sorted(numbered)[:-KEPT]:
        numbered[number].unlink(missing_ok=True)
