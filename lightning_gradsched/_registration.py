"""Makes ``Trainer(strategy="gradsched")`` known to Lightning, whichever package is imported first.

Lightning has no entry point for strategies, and importing it takes seconds. So this module imports
nothing: where a registry exists already it adds to it, and where it does not, it waits for the
module that makes it, by a finder on ``sys.meta_path`` that steps aside once it has done its work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NamedTuple


class _Home(NamedTuple):
    """Where Lightning's registry is called ``registry``, and our class to put into it."""

    registry: str
    module: str
    name: str


# Two distributions ship the same code and keep two registries with unrelated base classes.
_HOMES = {
    "lightning.pytorch.strategies": _Home(
        "StrategyRegistry", "lightning_gradsched.strategy", "GradSchedStrategy"
    ),
    "pytorch_lightning.strategies": _Home(
        "StrategyRegistry", "lightning_gradsched._pytorch_lightning", "GradSchedStrategy"
    ),
    "lightning.fabric.strategies": _Home(
        "STRATEGY_REGISTRY", "lightning_gradsched.fabric", "GradSchedFabricStrategy"
    ),
}

# name -> how the ranks are started, as Lightning's own ddp, ddp_spawn, ddp_fork, ddp_notebook
START_METHODS = {
    "gradsched": "popen",
    "gradsched_spawn": "spawn",
    "gradsched_fork": "fork",
    "gradsched_notebook": "fork",
}


def install() -> None:
    """Register now where Lightning's strategies are loaded, else when they will be. Idempotent."""
    for module_name, home in _HOMES.items():
        module = sys.modules.get(module_name)
        if module is not None and hasattr(module, home.registry):
            _register(module)
        elif not any(isinstance(f, _Finder) and f.target == module_name for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder(module_name))


def add_to(registry: Any, make: Callable[..., Any]) -> None:
    """Add the four names to a Lightning ``_StrategyRegistry``, each calling ``make``."""
    for name, start_method in START_METHODS.items():
        if name not in registry:
            registry.register(
                name,
                make,
                description=f"scheduled gradient reduction, ranks started by {start_method!r}",
                start_method=start_method,
            )


def _register(strategies: ModuleType) -> None:
    home = _HOMES[strategies.__name__]
    add_to(getattr(strategies, home.registry), partial(_make_strategy, home))


def _make_strategy(home: _Home, **init_params: Any) -> Any:
    return getattr(import_module(home.module), home.name)(**init_params)


class _Finder(MetaPathFinder):
    """Finds ``target`` as Python would, and adds our names after its loader has run."""

    def __init__(self, target: str) -> None:
        self.target = target

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.target:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Handed back first: tools that look at a module's loader must find its real one.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)
