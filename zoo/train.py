"""Train one experiment: `python -m zoo.train experiment=super_resolution`."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from zoo.callback.store_config import StoreConfig
from zoo.checkpoint import newest_checkpoint, read_checkpoint, require_fit
from zoo.errors import user_errors
from zoo.files import written_whole
from zoo.launch import check_launch, require_plugins, shared_errors
from zoo.runtime import (
    CONFIG_DIR,
    build_loggers,
    build_trainer,
    limit_threads,
    print_closing,
    shortened,
)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def main(config: DictConfig) -> None:
    with user_errors():
        train(config)


def train(config: DictConfig) -> None:
    """Fit, test the best weights, leave everything in `config.run_dir`.

    Every rank runs this: Lightning starts the program again for each with the same overrides.

    Raises:
        UserError: the data, the checkpoint to resume from, or the numbers are no good.
    """
    check_launch(config)
    limit_threads(config.threads_per_rank)
    L.seed_everything(config.seed, workers=True, verbose=False)
    # Before other ranks are started: they would wait for a rank that a bad file has stopped.
    with shared_errors(config):
        model, datamodule = instantiate(config.model), instantiate(config.data)
        resume = _resumable(config, model)
        datamodule.prepare_data()
    trainer = _trainer(config)
    trainer.fit(model, datamodule, ckpt_path=resume)
    checkpoint = _save_last(trainer, Path(config.run_dir))
    trainer.test(model, datamodule, ckpt_path=checkpoint, verbose=False)
    _report(config, model, datamodule, checkpoint)


def _resumable(config: DictConfig, model: L.LightningModule) -> Path | None:
    """The checkpoint to resume from, checked; None to start anew."""
    if config.resume == "auto":
        path = newest_checkpoint(Path(config.run_dir))
    else:
        path = None if config.resume is None else Path(config.resume)
    if path is not None:
        require_fit(read_checkpoint(path), model, path)
    return path


def _trainer(config: DictConfig) -> L.Trainer:
    run_dir = Path(config.run_dir)
    config_yaml = OmegaConf.to_yaml(config, resolve=True)
    _write_config(run_dir / "config.yaml", config_yaml)
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    return build_trainer(config, [*callbacks, StoreConfig(config_yaml)], build_loggers(run_dir))


@rank_zero_only
def _write_config(path: Path, config_yaml: str) -> None:
    with written_whole(path) as fresh:
        fresh.write_text(config_yaml)


def _save_last(trainer: L.Trainer, run_dir: Path) -> Path:
    """Save the last step; return the best checkpoint, or the last if none was validated.

    The callback saves after validations, and `max_steps` may come between two of them.
    """
    # Ranks that were started from outside read the clock, and named their folder, themselves.
    last = Path(trainer.strategy.broadcast(str(run_dir / "checkpoints" / "last.ckpt")))
    trainer.save_checkpoint(last)
    callback = trainer.checkpoint_callback
    best = Path(callback.best_model_path if isinstance(callback, ModelCheckpoint) else "")
    # After a resume the callback still names the old run's file, until a validation.
    return best if best.parent.absolute() == last.parent.absolute() else last


@rank_zero_only
def _report(
    config: DictConfig, model: L.LightningModule, datamodule: L.LightningDataModule, best: Path
) -> None:
    run_dir = Path(config.run_dir)
    pictures = datamodule.test_dataloader().dataset
    paths = instantiate(config.report).write(model, pictures, run_dir, best)
    paths |= {"checkpoint": best, "metrics": run_dir / "csv" / "metrics.csv"}
    paths |= {trace.stem: trace for trace in sorted(run_dir.glob("*_trace.json"))}
    last = run_dir / "checkpoints" / "last.ckpt"
    commands = {
        "evaluate": f"python -m zoo.evaluate checkpoint={shortened(best)}",
        "resume": f"python -m zoo.train experiment={config.name} resume={shortened(last)} "
        f"trainer.max_steps={2 * config.trainer.max_steps}",
    }
    print_closing(paths, commands)


if __name__ == "__main__":
    with user_errors():
        require_plugins(sys.argv[1:])
    main()
