"""End a run when a score is reached, and say how long that took."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback


class StopAtTarget(Callback):
    """Stops training after the validation in which `monitor` reaches `target`.

    All ranks decide by rank 0's value. The time is rank 0's, from the first step on, with
    validations, and with what a run took before it was resumed; it is printed, and kept in
    `seconds_to_target`, None until then.

    Args:
        monitor: a name that the module logs in validation.
        mode: "max" if more is better.

    Raises:
        ValueError: `monitor` was not logged, or `mode` is neither.
    """

    def __init__(self, monitor: str, target: float, mode: Literal["max", "min"] = "max") -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        self.monitor, self.target, self.mode = monitor, target, mode
        self.seconds_to_target: float | None = None
        self._earlier_s = 0.0
        self._began_s: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began_s = perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self._began_s is None:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"expected {self.monitor!r} to be logged in validation, got "
                f"{sorted(trainer.callback_metrics)}; set callbacks.stop_at_target.monitor to one "
                "of these"
            )
        value = float(trainer.callback_metrics[self.monitor])
        reached = value >= self.target if self.mode == "max" else value <= self.target
        if not trainer.strategy.broadcast(reached):
            return
        trainer.should_stop = True
        self.seconds_to_target = self._elapsed_s()
        if trainer.is_global_zero:
            print(
                f"target: {self.monitor} {value:.4f} reached {self.target:g} in epoch "
                f"{trainer.current_epoch}, step {trainer.global_step}, after "
                f"{self.seconds_to_target:.1f} s",
                flush=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed_s": self._elapsed_s()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_s = state_dict["elapsed_s"]

    def _elapsed_s(self) -> float:
        running_s = 0.0 if self._began_s is None else perf_counter() - self._began_s
        return self._earlier_s + running_s
