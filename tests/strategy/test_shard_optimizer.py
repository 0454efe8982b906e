"""Whole fits with ``shard_optimizer``, beside ``ddp``: weights, and checkpoints to the last bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerStatus

from lightning_gradsched import GradSchedStrategy
from tests.ranks import errors_of_ranks, run_ranks
from tests.strategy.fabric_steps import alike, steps_as_with_ddp
from tests.strategy.test_fit import CASES, PARTIAL, trainer
from tests.strategy.test_overlap_forward import Scheduled, Watcher

SHARDED = {"planner": "ddp", "shard_optimizer": True}
FITS: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    **{
        name: (*CASES[name], [])
        for name in ("accumulation", "two_optimizers", "bf16_true", "normalized", "unused_on_both")
    },
    "scheduled": (Scheduled, {"val_check_interval": 2, "gradient_clip_val": 0.1}, [Watcher]),
    "averaged": (Scheduled, {}, [EMAWeightAveraging]),
}


def fit(name: str, strategy: Any) -> dict[str, Any]:
    make, options, callbacks = FITS[name]
    pl.seed_everything(0, verbose=False)
    module = make()
    called = [make_callback() for make_callback in callbacks]
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(strategy, folder, callbacks=called, enable_checkpointing=True, **options)
        run.fit(module)
        path = run.checkpoint_callback.best_model_path
        state = torch.load(path, weights_only=True) if run.is_global_zero else {}
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "metrics": dict(run.callback_metrics),
        "optimizers": state.get("optimizer_states"),
        "seen": [callback.seen for callback in called if isinstance(callback, Watcher)],
    }


def all_fits(rank: int) -> list[str]:
    wrong = []
    for name in FITS:
        ddp = "ddp_find_unused_parameters_true" if name in PARTIAL else "ddp"
        if not alike(fit(name, GradSchedStrategy(**SHARDED)), fit(name, ddp)):
            wrong.append(name)
    return wrong


@pytest.mark.slow
def test_fits_and_checkpoints_are_ddps() -> None:
    assert run_ranks(2, all_fits, timeout_s=240) == [[], []]


def resumed(rank: int, folder: str) -> list[Any]:
    """Two epochs of AdamW, with and without shards in each: the checkpoint is for either."""
    results = []
    for number, (first, second) in enumerate([(False, False), (True, False), (False, True)]):
        path = str(Path(folder, f"{number}"))
        for shards, epochs in ((first, 1), (second, 2)):
            pl.seed_everything(0, verbose=False)
            module = Scheduled()
            run = trainer(
                GradSchedStrategy(planner="ddp", shard_optimizer=shards),
                path,
                max_epochs=epochs,
                enable_checkpointing=True,
            )
            checkpoint = results_of(path) if epochs == 2 else None
            run.fit(module, ckpt_path=checkpoint)
        results.append({name: value.clone() for name, value in module.state_dict().items()})
    return results


def results_of(folder: str) -> str:
    (path,) = Path(folder).rglob("*.ckpt")
    return str(path)


def test_a_checkpoint_is_loaded_with_and_without_shards(tmp_path: Path) -> None:
    for results in run_ranks(2, resumed, str(tmp_path)):
        assert alike(results[0], results[1])
        assert alike(results[0], results[2])


class SaveAsInterrupted(Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_args: Any) -> None:
        trainer.state.status = TrainerStatus.INTERRUPTED
        trainer.save_checkpoint("alone.ckpt")


def alone(rank: int) -> None:
    trainer(GradSchedStrategy(**SHARDED), callbacks=[SaveAsInterrupted()]).fit(Scheduled())


def test_a_rank_that_saves_alone_has_no_whole_state() -> None:
    for message in errors_of_ranks(2, alone):
        assert "shard_optimizer: the optimizer's state is spread over the ranks" in message


def test_fabric(tmp_path: Path) -> None:
    for is_alike, n_open in run_ranks(2, steps_as_with_ddp, SHARDED, None, str(tmp_path)):
        assert is_alike
        assert n_open > 0
