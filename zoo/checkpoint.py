"""Reading checkpoints, with errors that say what is wrong with which file."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from zoo.callback.store_config import CONFIG_KEY
from zoo.errors import CheckpointError, UserError

_SHOWN_MISMATCHES = 3


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, on the CPU.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no Lightning checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}. Expected a file; next, list those there are with "
            "`ls outputs/*/*/checkpoints/`."
        )
    try:
        _verify(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read. Expected a whole checkpoint of "
            f"weights, got: {reason}. Next, copy it again or use another one of the same run."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path} is no checkpoint of a training. Expected a `state_dict` inside, got "
            f"{_outline(checkpoint)}. Next, use a file that `python -m zoo.train` wrote."
        )
    return checkpoint


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint below a run folder; None where there is none.

    What is damaged is passed over, with a warning that names it and the one before.
    """
    found = sorted(run_dir.rglob("*.ckpt"), key=lambda path: -path.stat().st_mtime_ns)
    damaged: list[str] = []
    for path in found:
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            if damaged:
                warnings.warn(f"{' '.join(damaged)} Resuming from {path}.", stacklevel=2)
            return path
    if damaged:
        raise CheckpointError(f"no checkpoint in {run_dir} is whole: {' '.join(damaged)}")
    return None


def _verify(path: Path) -> None:
    """Compare the checksums that torch.save stores, and torch.load does not look at.

    Its members are not compressed, so none can claim more than the file has.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise zipfile.BadZipFile("compressed members, which torch.save never writes")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"another checksum of {damaged} than when it was written")


def config_of(checkpoint: dict[str, Any], path: Path) -> DictConfig:
    """The configuration that `zoo.train` stored, or CheckpointError."""
    if CONFIG_KEY not in checkpoint:
        raise CheckpointError(
            f"{path} holds no configuration. Expected the key {CONFIG_KEY!r}, got "
            f"{_outline(checkpoint)}. Next, use a file that `python -m zoo.train` wrote."
        )
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    assert isinstance(config, DictConfig)
    return config


def given_checkpoint(config: DictConfig) -> Path:
    """The path in `config.checkpoint`; UserError where there is none."""
    if config.checkpoint is None:
        raise UserError(
            "no checkpoint given. Expected checkpoint=PATH; next, list those there are with "
            "`ls outputs/*/*/checkpoints/`."
        )
    return Path(config.checkpoint)


def restored_model(checkpoint: dict[str, Any], trained: DictConfig, path: Path) -> Any:
    """The LightningModule of a stored configuration, with the weights of the checkpoint.

    Raises:
        CheckpointError: the weights are another network's.
    """
    model = instantiate(trained.model)
    require_fit(checkpoint, model, path)
    model.load_state_dict(checkpoint["state_dict"])
    model.on_load_checkpoint(checkpoint)
    return model


def require_fit(checkpoint: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Raise CheckpointError, naming the first parameters that differ, unless the weights fit."""
    mismatches = _mismatches(model.state_dict(), checkpoint["state_dict"])
    if mismatches:
        more = len(mismatches) - _SHOWN_MISMATCHES
        raise CheckpointError(
            f"{path} belongs to another network: "
            + "; ".join(mismatches[:_SHOWN_MISMATCHES])
            + (f"; and {more} more" if more > 0 else "")
            + ". Next, give the net, model and data options with which it was trained; they are in "
            "the config.yaml of its run folder."
        )


def _mismatches(expected: dict[str, Tensor], got: dict[str, Tensor]) -> list[str]:
    return [
        f"{name} expected {_shape(expected.get(name))}, got {_shape(got.get(name))}"
        for name in expected | got
        if _shape(expected.get(name)) != _shape(got.get(name))
    ]


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(list(tensor.shape))


def _outline(content: Any) -> str:
    if isinstance(content, dict):
        return f"the keys {sorted(map(str, content))}"
    return f"a {type(content).__name__}"
