"""GradSchedFabricStrategy: the engine under Lightning Fabric."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any
from weakref import WeakValueDictionary

from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.strategy import _BackwardSyncControl
from lightning.fabric.wrappers import _FabricModule, _unwrap_compiled
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gradsched import _registration
from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.lag import check_optimizers
from lightning_gradsched.runtime.scheduler import GradientScheduler
from lightning_gradsched.strategy import read_config


class GradSchedFabricStrategy(DDPStrategy):
    """``Fabric(strategy="gradsched")``: a drop-in for ``"ddp"`` that schedules its reductions.

    Args:
        config: a ``GradSchedConfig``; or give its fields as keywords.

    ``accelerator`` to ``start_method`` are as in Fabric's ``DDPStrategy``. Each module that is set
    up gets an engine of its own and is not wrapped.

    Raises:
        TypeError: an unknown keyword; the message lists the valid ones.
        ValueError: a config field outside its range.
    """

    def __init__(
        self,
        config: GradSchedConfig | None = None,
        *,
        accelerator: Any = None,
        parallel_devices: Any = None,
        cluster_environment: Any = None,
        checkpoint_io: Any = None,
        precision: Any = None,
        process_group_backend: str | None = None,
        start_method: Any = "popen",
        **config_fields: Any,
    ) -> None:
        self.config = read_config(config, config_fields)
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision=precision,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=self.config.stall_timeout_s),
            start_method=start_method,
        )
        self._backward_sync_control = _NoSync(self)
        # By id of their modules, which keep them alive.
        self._schedulers: WeakValueDictionary[int, GradientScheduler] = WeakValueDictionary()

    def scheduler(self, module: Module) -> GradientScheduler:
        """The engine of a module that ``fabric.setup`` has set up, as it was before or after.

        Raises:
            GradSchedError: the module has not been set up.
        """
        module, _ = _unwrap_compiled(module)
        if isinstance(module, _FabricModule):
            module, _ = _unwrap_compiled(module._forward_module)
        scheduler = self._schedulers.get(id(module))
        if scheduler is None:
            raise GradSchedError(
                f"expected a module that was set up, got {type(module).__name__}: call"
                " module = fabric.setup(module) first"
            )
        return scheduler

    @override
    def setup_module(self, module: Module) -> Module:  # type: ignore[override]
        """Attach the engine. Unlike ``DDPStrategy``'s, it returns ``module`` itself."""
        self._schedulers[id(module)] = GradientScheduler(module, self.config)
        return module

    @override
    def setup_module_and_optimizers(
        self, module: Module, optimizers: list[Optimizer], scheduler: Any = None
    ) -> tuple[Module, list[Optimizer], Any]:
        result = super().setup_module_and_optimizers(module, optimizers, scheduler)
        if self.config.gradient_lag:
            check_optimizers(optimizers)
        for optimizer in optimizers:
            if self.config.overlap_forward:
                self._schedulers[id(module)].overlap(optimizer)
            if self.config.shard_optimizer:
                self._schedulers[id(module)].shard(optimizer)
        return result

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        _registration.add_to(strategy_registry, cls)


class _NoSync(_BackwardSyncControl):
    """``fabric.no_backward_sync``."""

    def __init__(self, strategy: GradSchedFabricStrategy) -> None:
        self._strategy = strategy

    @override
    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[None]:
        return self._strategy.scheduler(module).no_sync() if enabled else nullcontext()
