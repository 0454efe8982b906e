"""What `zoo.train` and `zoo.evaluate` share: threads, trainer, closing lines."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_utilities.core.imports import RequirementCache
from omegaconf import DictConfig
from rich.console import Console

from zoo.launch import launched_devices

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"


def limit_threads(threads_per_rank: int | None) -> None:
    """Give each rank so many CPU threads; None leaves it to torch and Lightning."""
    if threads_per_rank is not None:
        # For the ranks that Lightning starts later, and to keep Lightning from choosing its own.
        os.environ["OMP_NUM_THREADS"] = str(threads_per_rank)
        torch.set_num_threads(threads_per_rank)


def quiet_answered_warnings() -> None:
    """Leave out those warnings of Lightning that the zoo has an answer to."""
    # Repeated pictures count once: `zoo.metric.picture_scores`.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    # A resumed run has a folder of its own, and a best checkpoint of its own.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # resume=auto goes on in the folder of the run that was interrupted.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Lightning's own use of a torch class that is about to be renamed.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def build_trainer(
    config: DictConfig, callbacks: list[Callback], loggers: list[Logger] | bool
) -> L.Trainer:
    """The Trainer of `config.trainer` with these callbacks and loggers (False for none)."""
    quiet_answered_warnings()
    devices = launched_devices() if config.trainer.devices == "auto" else None
    # Lightning takes all devices that it sees for "auto", however many ranks there are.
    chosen = {} if devices is None else {"devices": devices}
    return instantiate(config.trainer, callbacks=callbacks, logger=loggers, **chosen)


def quiet_trainer(max_steps: int, precision: str = "32-true") -> L.Trainer:
    """A Trainer on one CPU rank that prints, logs and saves nothing, and does not validate."""
    quiet_answered_warnings()
    # Little data is meant here, and it is in memory.
    for message in (".*does not have many workers", "The number of training batches"):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def build_loggers(run_dir: Path) -> list[Logger]:
    """CSV always, TensorBoard where it is installed."""
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv", version="")]
    if RequirementCache("tensorboard") or RequirementCache("tensorboardX"):
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version=""))
    return loggers


def print_closing(paths: Mapping[str, Path], commands: Mapping[str, str]) -> None:
    """Print where things lie and what to type next, each a line that can be copied whole."""
    console = Console(soft_wrap=True, highlight=False)
    lines = {label: str(shortened(path)) for label, path in paths.items()} | dict(commands)
    width = max(map(len, lines))
    for label, text in lines.items():
        console.print(f"{label:<{width}}  {text}", markup=False)


def shortened(path: Path) -> Path:
    """`path` from the working directory if it lies inside."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
