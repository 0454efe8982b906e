"""The models that ``gradsched doctor`` plans for: built by name, stepped, measured."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.errors import GradSchedError, ModelError
from lightning_gradsched.runtime.profiler import MEASURED_STEPS, WARM_UP_STEPS
from lightning_gradsched.runtime.scheduler import GradientScheduler

CONFIG_NAME = "train"


class Model(NamedTuple):
    """A module, an example of what a step is given, and the loss of a step on it."""

    name: str
    module: nn.Module
    example: Any
    loss_of: Callable[[nn.Module, Any], Any]


def from_factory(spec: str, shape: tuple[int, ...] | None) -> Model:
    """The model that ``package.module:factory`` makes; paths start at the working directory.

    Its loss is the mean square of whatever floating-point tensors come out.

    Raises:
        ModelError: no such module or function, it raises, or returns something else.
    """
    made = _attempt(f"--module {spec}", lambda: _factory(spec)())
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"--module {spec}: expected an nn.Module or (nn.Module, example input) from the"
            f" factory, got {type(made).__name__}"
        )
    if shape is not None:
        example = torch.randn(shape)
    if example is None:
        raise ModelError(
            f"--module {spec}: expected an example input, got none; give its shape, for example"
            " --input 8,3,224,224, or return (module, example input) from the factory"
        )
    return _checked(Model(f"--module {spec}", module, example, _mean_square))


def from_experiment(name: str) -> Model:
    """The LightningModule of ``conf/experiment/<name>.yaml`` and its data's first batch.

    ``conf/train.yaml`` holds what builds them, under ``model`` and ``data``.

    Raises:
        ModelError: no such folder or experiment, or it cannot be built.
    """
    label = f"--experiment {name}"
    folder = Path("conf").absolute()
    if not (folder / f"{CONFIG_NAME}.yaml").is_file():
        raise ModelError(
            f"{label}: expected {folder / CONFIG_NAME}.yaml, got no such file; start it from the"
            " checkout that has conf/"
        )
    known = sorted(path.stem for path in (folder / "experiment").glob("*.yaml"))
    if name not in known:
        raise ModelError(f"{label}: expected one of {known} from {folder / 'experiment'}")
    return _checked(_attempt(label, lambda: _experiment(folder, name)))


def measure(
    model: Model, device: torch.device, timeout_s: float
) -> tuple[NetworkProfile, BackwardProfile]:
    """The network and the profile, after a few real steps on all ranks. Collective.

    Raises:
        ModelError: a step raises or gives no loss; the other ranks wait at most ``timeout_s``.
    """
    module = model.module.to(device).train()
    example = move_data_to_device(model.example, device)
    config = GradSchedConfig(planner="optimal", stall_timeout_s=timeout_s)
    scheduler = GradientScheduler(module, config)
    try:
        for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
            module.zero_grad()
            loss = _loss(model, example)
            scheduler.prepare(loss)
            loss.backward()
        network, profile = scheduler.network, scheduler.profile
    finally:
        scheduler.detach()
    assert network is not None
    assert profile is not None
    return network, profile


def _factory(spec: str) -> Callable[[], Any]:
    path, _, attribute = spec.partition(":")
    if not (path and attribute):
        raise ModelError(f"expected package.module:factory, got {spec!r}")
    factory: Any = _from_working_directory(path)
    for part in attribute.split("."):
        factory = getattr(factory, part)
    if not callable(factory):
        raise ModelError(f"expected a function, got {type(factory).__name__} {attribute}")
    return factory  # type: ignore[no-any-return]


def _from_working_directory(path: str) -> Any:
    # As `python -m` does; the installed command's path begins at its own folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return import_module(path)


def _experiment(folder: Path, name: str) -> Model:
    try:
        from hydra import compose, initialize_config_dir
        from hydra.utils import instantiate
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ModelError(f"{error}; pip install 'lightning-gradsched[zoo]'") from error
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(CONFIG_NAME, [f"experiment={name}"])
    n_threads = OmegaConf.select(config, "threads_per_rank")
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    module, data = instantiate(config.model), instantiate(config.data)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    return Model(f"--experiment {name}", module, batch, _training_step)


def _checked(model: Model) -> Model:
    if not any(param.requires_grad for param in model.module.parameters()):
        raise ModelError(
            f"{model.name}: {type(model.module).__name__} has no parameters to train; there is"
            " nothing to reduce"
        )
    return model


def _attempt(label: str, build: Callable[[], Any]) -> Any:
    """``build()``; whatever a user's code raises in it becomes a ``ModelError``."""
    try:
        return build()
    except GradSchedError as error:
        raise ModelError(f"{label}: {error}") from error
    except Exception as error:
        raise ModelError(f"{label}: {type(error).__name__}: {error}") from error


def _loss(model: Model, example: Any) -> Tensor:
    loss = _attempt(f"{model.name}: a step failed", lambda: model.loss_of(model.module, example))
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        raise ModelError(
            f"{model.name}: expected a loss that depends on parameters, got {loss!r}; where the"
            " step optimizes by itself, run the job with planner='auto' and give its profile with"
            " --profile"
        )
    return loss


def _mean_square(module: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        out = module(**example)
    else:
        out = module(*example) if isinstance(example, tuple) else module(example)
    floats = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
    return sum(t.float().square().mean() for t in floats)


def _training_step(module: Any, batch: Any) -> Any:
    names = inspect.signature(module.training_step).parameters
    args = (batch, 0) if "batch_idx" in names else (batch,)
    with warnings.catch_warnings():
        # There is no Trainer to log to.
        warnings.filterwarnings("ignore", message=r"You are trying to `self\.log")
        out = module.training_step(*args)
    return out["loss"] if isinstance(out, Mapping) else out
