"""What the launcher, torchrun or SLURM's `srun`, says of this run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError, mendable, paragraph


def launched_nodes(environ: Mapping[str, str] = os.environ) -> int:
    """On how many nodes the ranks were started; 1 where Lightning starts them."""
    if "LOCAL_WORLD_SIZE" in environ:
        return int(environ.get("GROUP_WORLD_SIZE", "1"))
    return int(environ.get("SLURM_STEP_NUM_NODES", "1"))


def launched_devices(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks were started on this node; None where Lightning starts them.

    >>> launched_devices({"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "2"})
    1
    """
    if "LOCAL_WORLD_SIZE" in environ:
        return int(environ["LOCAL_WORLD_SIZE"])
    counts: list[int] = []
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    ):
        counts += [int(count)] * int(times or 1)
    return counts[int(environ["SLURM_NODEID"])] if counts else None


def launch_name(environ: Mapping[str, str] = os.environ) -> str:
    """What the run's folder is called: by the SLURM job and step, else by the clock.

    >>> launch_name({"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"})
    'slurm_4711'
    >>> launch_name({"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "1"})
    'slurm_4711.1'
    """
    job, step = environ.get("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID", "0")
    if job is None:
        return f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return f"slurm_{job}" + ("" if step == "0" or not step.isdigit() else f".{step}")


for _resolver in (launched_nodes, launch_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, use_cache=True, replace=True)


def require_plugins(arguments: Sequence[str]) -> None:
    """Name the extra that a launcher needs; Hydra would list the launchers that it knows.

    Raises:
        UserError: the plugin of `launcher=slurm` is not installed.
    """
    if "launcher=slurm" not in arguments:
        return
    try:
        import_module("hydra_plugins.hydra_submitit_launcher")
    except ImportError as error:
        raise UserError(
            f"launcher=slurm: expected Hydra's submitit launcher, got {error!r}: install it by"
            " pip install -e '.[zoo,slurm]'"
        ) from error


def check_launch(config: DictConfig) -> None:
    """Have a launcher's ranks checked by `config.preflight`, and use rank 0's run folder on all."""
    if not config.preflight:
        return
    agreement = instantiate(config.preflight.launch)
    if agreement is None or Path(config.run_dir).absolute() == Path(agreement.run_dir):
        return
    own = Path(config.run_dir)
    config.run_dir = agreement.run_dir
    with suppress(OSError):  # not empty, or another rank's too
        own.rmdir()


@contextmanager
def shared_errors(config: DictConfig) -> Iterator[None]:
    """End all of a launcher's ranks where one has a mendable error; they would wait for it."""
    try:
        yield
    except mendable() as error:
        if config.preflight:
            instantiate(config.preflight.data, problem=paragraph(error))
        raise
    if config.preflight:
        instantiate(config.preflight.data, problem=None)
