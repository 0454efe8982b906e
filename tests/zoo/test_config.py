"""conf/ mirrors zoo/, composes and instantiates."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from zoo.runtime import CONFIG_DIR

_ROOMS = [
    path.name for path in CONFIG_DIR.iterdir() if (CONFIG_DIR.parent / "zoo" / path.name).is_dir()
]
# Without a target: the choice "none of these", such as a constant learning rate.
_MIRRORS = [
    path
    for room in _ROOMS
    for path in sorted((CONFIG_DIR / room).glob("*.yaml"))
    if "_target_" in OmegaConf.load(path)
]
_EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
_GROUPS = ("data", "net", "model", "optimizer", "scheduler", "strategy", "report", "trainer")
# One task's data are nothing for another's net: experiments choose these together.
_FITTED_TOGETHER = ("data", "net", "model", "report")
_CHOICES = [
    f"{group}={path.stem}"
    for group in _GROUPS
    for path in sorted((CONFIG_DIR / group).glob("*.yaml"))
]


@pytest.fixture
def composed(clean_process: None, tmp_path: Path) -> Iterator:
    def run(name: str, *overrides: str) -> DictConfig:
        output_dir = f"hydra.runtime.output_dir={tmp_path}"
        config = compose(name, [*overrides, output_dir], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield run


@pytest.mark.parametrize("path", _MIRRORS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_mirrors_its_module(path: Path) -> None:
    target = OmegaConf.load(path)["_target_"]
    module, _, _ = target.rpartition(".")
    of_lightning = target.startswith("lightning.pytorch.")
    assert of_lightning or module == f"zoo.{path.parent.name}.{path.stem}"
    assert get_class(target).__name__ == target.rpartition(".")[2]


def test_rooms_are_found() -> None:
    assert {"data", "net", "model", "report", "callback"} <= set(_ROOMS)


@pytest.mark.parametrize("experiment", _EXPERIMENTS)
def test_experiment_begins_with_its_command(experiment: str) -> None:
    lines = (CONFIG_DIR / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    # Hydra reads the package only from a file's very first line.
    assert lines[0] == "# @package _global_"
    command = shlex.split(lines[1].removeprefix("# "))
    assert command == ["python", "-m", "zoo.train", f"experiment={experiment}"]


@pytest.mark.parametrize("experiment", _EXPERIMENTS)
def test_experiment_instantiates(composed, experiment: str) -> None:
    config = composed("train", f"experiment={experiment}", "strategy=ddp")
    assert config.name == experiment
    assert isinstance(instantiate(config.model), L.LightningModule)
    assert isinstance(instantiate(config.data), L.LightningDataModule)
    assert all(instantiate(callback) for callback in config.callbacks.values())
    assert callable(instantiate(config.report).write)


@pytest.mark.parametrize("choice", _CHOICES)
def test_every_choice_composes(composed, choice: str) -> None:
    group = choice.partition("=")[0]
    resolve = group not in _FITTED_TOGETHER
    assert group in OmegaConf.to_container(composed("train", choice), resolve=resolve)


def test_evaluate_composes(composed) -> None:
    config = composed("evaluate")
    assert config.checkpoint is None
    assert config.trainer.strategy == "auto"


def test_generate_composes_and_instantiates(composed) -> None:
    config = composed("generate", "size=small", "seed=5")
    assert config.folder == "data/cbed_small"
    dataset = instantiate(config.dataset)
    assert (dataset.size, dataset.seed) == ("small", 5)


def test_optimizer_and_schedule_arrive_ready_to_call(composed) -> None:
    config = composed("train", "optimizer.lr=0.5", "scheduler=cosine", "trainer.max_steps=10")
    configured = instantiate(config.model).configure_optimizers()
    assert configured["optimizer"].param_groups[0]["lr"] == 0.5
    assert configured["lr_scheduler"]["scheduler"].get_last_lr() == [0.5]


def test_scale_reaches_net_and_metric(composed) -> None:
    model = instantiate(composed("train", "data.scale=3").model)
    assert (model.net.scale, model.convention.border_px) == (3, 3)
