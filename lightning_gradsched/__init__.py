"""lightning-gradsched: gradient reduction scheduled from the model's own backward graph.

Importing this package registers the strategies ``gradsched``, ``gradsched_spawn``,
``gradsched_fork`` and ``gradsched_notebook`` with Lightning. It loads neither torch nor Lightning:
the names below are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_gradsched import _registration

if TYPE_CHECKING:
    from lightning_gradsched.checkpoint_io import SafeCheckpointIO
    from lightning_gradsched.config import GradSchedConfig
    from lightning_gradsched.core.report import OverlapReport
    from lightning_gradsched.core.timeline import Timeline
    from lightning_gradsched.errors import GradSchedError
    from lightning_gradsched.fabric import GradSchedFabricStrategy
    from lightning_gradsched.monitor import GradSchedMonitor
    from lightning_gradsched.runtime.scheduler import GradientScheduler
    from lightning_gradsched.strategy import GradSchedStrategy

__version__ = "0.1.0"

__all__ = [
    "GradSchedConfig",
    "GradSchedError",
    "GradSchedFabricStrategy",
    "GradSchedMonitor",
    "GradSchedStrategy",
    "GradientScheduler",
    "OverlapReport",
    "SafeCheckpointIO",
    "Timeline",
    "__version__",
]

_HOME = {
    "GradSchedConfig": "config",
    "GradSchedError": "errors",
    "GradSchedFabricStrategy": "fabric",
    "GradSchedMonitor": "monitor",
    "GradSchedStrategy": "strategy",
    "GradientScheduler": "runtime.scheduler",
    "OverlapReport": "core.report",
    "SafeCheckpointIO": "checkpoint_io",
    "Timeline": "core.timeline",
}

_registration.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
