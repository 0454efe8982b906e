"""Whole fits: ``gradsched`` and ``ddp`` from one seed end with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import lightning_gradsched  # noqa: F401  registers the strategy
from lightning_gradsched import GradSchedConfig, GradSchedStrategy
from tests.ranks import errors_of_ranks, run_ranks
from tests.strategy import modules

Weights = dict[str, Tensor]

CASES: dict[str, tuple[type[pl.LightningModule], dict[str, Any]]] = {
    "plain": (modules.Regression, {}),
    "accumulation": (modules.Regression, {"accumulate_grad_batches": 3}),
    "clip_norm": (modules.Regression, {"gradient_clip_val": 0.05}),
    "clip_value": (
        modules.Regression,
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
    "two_optimizers": (modules.TwoOptimizers, {}),
    "manual_accumulation": (modules.ManualAccumulation, {}),
    "bf16_mixed": (modules.Regression, {"precision": "bf16-mixed"}),
    "bf16_true": (modules.Regression, {"precision": "bf16-true"}),
    "frozen": (modules.Frozen, {}),
    "normalized": (modules.Normalized, {}),
    "normalized_accumulation": (modules.Normalized, {"accumulate_grad_batches": 3}),
    "unused_on_one_rank": (modules.UnusedOnOneRank, {}),
    "unused_on_both": (modules.UnusedOnBoth, {}),
}
# stock DDP needs its flag where a backward does not reach all parameters
PARTIAL = {"two_optimizers", "unused_on_one_rank", "unused_on_both"}


def trainer(strategy: Any, folder: str = ".", **options: Any) -> pl.Trainer:
    # Lightning says how it was started, and that tests have few workers.
    warnings.simplefilter("ignore")
    return pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=2,
        **{
            "max_epochs": 2,
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def fit(rank: int, case: str, strategy: Any) -> Weights:
    make, options = CASES[case]
    pl.seed_everything(rank, verbose=False)  # each its own: rank 0's weights must win
    module = make()
    run = trainer(strategy, **options)
    run.fit(module)
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return {**state, **run.callback_metrics}


@pytest.mark.parametrize("case", CASES)
def test_ends_with_the_weights_of_ddp(case: str) -> None:
    ddp = "ddp_find_unused_parameters_true" if case in PARTIAL else "ddp"
    ours = run_ranks(2, fit, case, "gradsched")
    theirs = run_ranks(2, fit, case, ddp)
    for rank in range(2):
        for name, value in theirs[rank].items():
            assert torch.equal(ours[rank][name], value), (rank, name)


class Compressed(modules.Regression):
    def on_train_start(self) -> None:
        transport = self.trainer.strategy.scheduler._reducer.launches.transport
        assert "fp16_compress_wrapper_hook" in transport.name


def fit_compressed(rank: int) -> Weights:
    pl.seed_everything(rank, verbose=False)
    module = Compressed()
    strategy = GradSchedStrategy(
        planner="ddp",
        ddp_comm_state=powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2),
        ddp_comm_hook=powerSGD_hook.powerSGD_hook,
        ddp_comm_wrapper=default_hooks.fp16_compress_wrapper,
    )
    trainer(strategy).fit(module)
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def fit_compressed_by_hand(rank: int) -> Weights:
    """DDP in a plain loop: Lightning registers hooks on CUDA alone."""
    pl.seed_everything(rank, verbose=False)
    module = modules.Regression()
    ddp = DistributedDataParallel(module)
    ddp.register_comm_hook(
        powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2),
        default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook),
    )
    optimizer = module.configure_optimizers()
    data = module.train_dataloader().dataset
    for epoch in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=rank)  # Lightning's
        sampler.set_epoch(epoch)
        for x, y in DataLoader(data, batch_size=4, sampler=sampler):
            optimizer.zero_grad()
            F.mse_loss(ddp(x), y).backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_lightnings_hook_keywords_work_on_cpu() -> None:
    ours, theirs = run_ranks(2, fit_compressed), run_ranks(2, fit_compressed_by_hand)
    for rank in range(2):
        for name, value in theirs[rank].items():
            assert torch.equal(ours[rank][name], value), (rank, name)


def fit_synced_norm(rank: int) -> None:
    trainer("gradsched", sync_batchnorm=True).fit(modules.Normalized())


def test_synced_batch_norm_is_torchs_and_wants_a_gpu() -> None:
    for message in errors_of_ranks(2, fit_synced_norm):
        assert message.startswith("ValueError: SyncBatchNorm expected input tensor to be on GPU")


def test_planning_from_measurements_changes_no_weight(tmp_path: Path) -> None:
    for planner in ("optimal", "auto"):
        strategy = GradSchedStrategy(planner=planner, calibration_dir=str(tmp_path))
        ours = run_ranks(2, fit, "accumulation", strategy)
        theirs = run_ranks(2, fit, "accumulation", "ddp")
        for name, value in theirs[0].items():
            assert torch.equal(ours[0][name], value), (planner, name)


def fit_in_folder(rank: int, folder: str) -> GradSchedConfig:
    strategy = GradSchedStrategy(planner="optimal")
    trainer(strategy, folder, max_steps=1).fit(modules.Regression())
    return strategy.config


def test_the_measured_network_is_kept_below_the_trainers_folder(tmp_path: Path) -> None:
    for config in run_ranks(2, fit_in_folder, str(tmp_path)):
        assert config.calibration_dir is None, "a strategy used again goes by its next Trainer"
    (path,) = (tmp_path / "gradsched").iterdir()
    assert json.loads(path.read_text())["key"]["world_size"] == 2


def test_a_parameter_that_no_rank_uses_does_not_decay() -> None:
    weights = run_ranks(2, fit, "unused_on_both", "gradsched")[0]
    pl.seed_everything(0, verbose=False)
    untouched = modules.UnusedOnBoth().state_dict()
    assert torch.equal(weights["middle.weight"], untouched["middle.weight"])
    assert not torch.equal(weights["encode.weight"], untouched["encode.weight"])


class Inspector(pl.Callback):
    """Notes what a callback of the user's may see."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen["grad"] = pl_module.encode.weight.grad.clone()
        self.seen["unwrapped"] = trainer.strategy.model is pl_module


def checkpointed_fit(rank: int, folder: str) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    inspector = Inspector()
    strategy = GradSchedStrategy(
        planner="per_tensor", record_every_n_steps=2, trace_path=f"{folder}/trace.json"
    )
    run = trainer(strategy, folder, enable_checkpointing=True, max_epochs=1, callbacks=[inspector])
    module = modules.Regression()
    run.fit(module)
    resumed = trainer("gradsched", folder, max_epochs=2)
    resumed.fit(modules.Regression(), ckpt_path=run.checkpoint_callback.best_model_path)
    return {
        **inspector.seen,
        "path": run.checkpoint_callback.best_model_path,
        "report": strategy.report(),
        "hooks": [len(p._post_accumulate_grad_hooks or ()) for p in module.parameters()],
        "resumed_step": resumed.global_step,
    }


def test_checkpoint_callbacks_report_and_trace(tmp_path: Path) -> None:
    first, second = run_ranks(2, checkpointed_fit, str(tmp_path))
    assert first["unwrapped"]
    assert torch.equal(first["grad"], second["grad"]), "reduced before on_after_backward"
    state = torch.load(first["path"], weights_only=False)["state_dict"]
    assert set(state) == set(modules.Regression().state_dict()), "no prefix: nothing is wrapped"
    assert first["hooks"] == [0] * 6, "teardown removed the hooks"
    assert first["resumed_step"] == 12
    assert first["report"].rows[0].names == ("decode.bias",)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert {event["cat"] for event in trace["traceEvents"]} == {"compute", "queue", "communication"}
    assert trace["otherData"]["schedule"].startswith("R0 R1")


class UnfreezeEncoder(BaseFinetuning):
    """Trains ``encode`` too from the second epoch on, in the optimizer that there is."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.encode)

    def finetune_function(
        self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.encode, optimizer)


def finetune(rank: int, folder: str) -> tuple[Weights, Weights, int]:
    pl.seed_everything(0, verbose=False)
    module = modules.Regression()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    strategy = GradSchedStrategy(record_every_n_steps=1, trace_path=f"{folder}/trace.json")
    trainer(strategy, folder, callbacks=[UnfreezeEncoder()]).fit(module)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    return before, after, sum(len(row.names) for row in strategy.report().rows)


def test_an_unfrozen_encoder_is_reduced(tmp_path: Path) -> None:
    """Stock DDP leaves it unreduced, and the ranks' weights drift apart (Lightning #20340)."""
    first, second = run_ranks(2, finetune, str(tmp_path))
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name
        assert not torch.equal(value, first[0][name]), name
    assert first[2] == 6, "the report is that of the plan with all parameters"
    assert (tmp_path / "trace.json").exists()


SCRIPT = """
import lightning.pytorch as pl
import lightning_gradsched
from tests.strategy.modules import Regression

if __name__ == "__main__":
    trainer = pl.Trainer(strategy="{name}", accelerator="cpu", devices=2, max_epochs=1,
                         logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Regression())
    try:
        trainer.strategy.report()
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradsched", "gradsched_spawn", "gradsched_fork"])
def test_every_way_of_starting_ranks(name: str, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT.format(name=name))
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "`max_epochs=1` reached" in result.stderr
    if name != "gradsched":
        assert "no fit has run in this process" in result.stdout


def other_model(rank: int) -> None:
    module = modules.Regression() if rank == 0 else modules.Frozen()
    trainer("gradsched").fit(module)


def test_a_rank_with_another_model_is_named_on_every_rank() -> None:
    for message in errors_of_ranks(2, other_model):
        assert message.startswith("ConsensusError")
        assert "parameter 0 is 'encode.weight'" in message
        assert "'middle.weight'" in message


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"bucket_cap_mb": 25}, TypeError, "planner='fixed_size' and group_nbytes"),
        ({"timeout": 3}, TypeError, "choose stall_timeout_s"),
        ({"find_unused_parameters": True}, TypeError, "need no flag"),
        ({"plan": "ddp"}, TypeError, "no 'plan'; its settings are"),
        ({"planner": "best"}, ValueError, r"planner: expected one of .*'ddp'.*, got 'best'"),
        ({"uneven_batches": "skip"}, ValueError, r"uneven_batches: expected one of .*'active'"),
        ({"group_nbytes": 0}, ValueError, "group_nbytes: expected at least 1"),
        ({"stall_timeout_s": 0}, ValueError, "stall_timeout_s: expected a positive"),
        ({"record_every_n_steps": -1}, ValueError, "record_every_n_steps: expected 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GradSchedStrategy(**given)


def test_there_is_no_engine_before_a_fit() -> None:
    with pytest.raises(RuntimeError, match="no fit has run"):
        GradSchedStrategy().report()
