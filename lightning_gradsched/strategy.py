"""GradSchedStrategy: Lightning's life cycle -> the engine's stages, nothing else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.distributed import DistError
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gradsched import _registration
from lightning_gradsched.checkpointing import CheckpointMixin
from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.report import OverlapReport
from lightning_gradsched.errors import GradSchedError, ProcessGroupError
from lightning_gradsched.preemption import Preemption
from lightning_gradsched.preflight import TIMEOUT_S, preflight
from lightning_gradsched.runtime.comm_hook import CommHook
from lightning_gradsched.runtime.join import check_joinable
from lightning_gradsched.runtime.lag import check_optimizers
from lightning_gradsched.runtime.scheduler import GradientScheduler
from lightning_gradsched.slurm import StepEnvironment, in_step, is_launcher
from lightning_gradsched.trace import write_trace
from lightning_gradsched.uneven import PaddedLoader, pad

if TYPE_CHECKING:
    _Base = DDPStrategy
else:
    _Base = object

_CONFIG_FIELDS = tuple(field.name for field in fields(GradSchedConfig))

_REFUSED = {
    "find_unused_parameters": "parameters that a backward does not reach need no flag",
    "static_graph": "the schedule follows the graph by itself",
    "gradient_as_bucket_view": "gradients are views of the buckets always",
    "bucket_cap_mb": "choose planner='fixed_size' and group_nbytes instead",
    "timeout": "choose stall_timeout_s",
    "model_averaging_period": "model averaging does not work yet",
}


class GradSchedMixin(CheckpointMixin, _Base):
    """The strategy, over the ``DDPStrategy`` of either distribution of Lightning."""

    _step_environment: type = StepEnvironment

    def __init__(
        self,
        config: GradSchedConfig | None = None,
        *,
        accelerator: Any = None,
        parallel_devices: Any = None,
        cluster_environment: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
        ddp_comm_state: Any = None,
        ddp_comm_hook: CommHook | None = None,
        ddp_comm_wrapper: Callable[[CommHook], CommHook] | None = None,
        process_group_backend: str | None = None,
        start_method: Any = "popen",
        **config_fields: Any,
    ) -> None:
        self.config = read_config(config, config_fields)
        if cluster_environment is None and in_step(os.environ):
            cluster_environment = self._step_environment()
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            ddp_comm_state=ddp_comm_state,
            ddp_comm_hook=ddp_comm_hook,
            ddp_comm_wrapper=ddp_comm_wrapper,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=self.config.stall_timeout_s),
            start_method=start_method,
        )
        self._scheduler: GradientScheduler | None = None
        self._checked_epoch = -1  # the last whose number of batches the ranks have compared
        self._has_no_loss = False  # training_step gave none, where Lightning expects one
        self._is_over = False  # this rank has no batch where others have one
        self._preemption: Preemption | None = None

    @property
    def scheduler(self) -> GradientScheduler:
        """The engine of the last ``fit`` in this process."""
        if self._scheduler is None:
            raise GradSchedError(
                "no fit has run in this process, so there is no gradient scheduler; where ranks are"
                " spawned or forked they have it, and trace_path brings out what was measured"
            )
        return self._scheduler

    def report(self) -> OverlapReport:
        """The overlap report of the recorded steps; also after ``fit``."""
        return self.scheduler.report()

    @property
    @override
    def root_device(self) -> torch.device:
        # Nodes may have unlike numbers of ranks, and Lightning knows of this node's devices only.
        if self.parallel_devices and self.parallel_devices[0].type == "cpu":
            return self.parallel_devices[0]
        return super().root_device

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @override
    def setup_environment(self) -> None:
        if self.config.preflight and is_launcher(self.cluster_environment):
            assert self.lightning_module is not None
            preflight(
                run_dir=self.lightning_module.trainer.default_root_dir,
                devices=self.num_processes,
                num_nodes=self.num_nodes,
                accelerator=self.root_device.type,
                timeout_s=min(TIMEOUT_S, self.config.stall_timeout_s),
            )
        super().setup_environment()

    @override
    def setup(self, trainer: Any) -> None:
        if self.config.preempt_signals and trainer.state.fn == TrainerFn.FITTING:
            self._watch_signals(trainer)
        super().setup(trainer)

    def _watch_signals(self, trainer: Any) -> None:
        if trainer.fast_dev_run:
            return
        if self._preemption is None:
            self._preemption = Preemption(self.config.preempt_signals, self)
        self._preemption.take_over(trainer)
        if self._preemption not in trainer.callbacks:
            trainer.callbacks.append(self._preemption)

    @override
    def setup_distributed(self) -> None:
        try:
            super().setup_distributed()
        except (DistError, RuntimeError, ValueError, OSError) as error:
            env = self.cluster_environment
            assert env is not None
            raise ProcessGroupError(
                f"rank {self.global_rank} could not form the process group of {self.world_size}"
                f" ranks at {env.main_address}:{env.main_port} within"
                f" {self.config.stall_timeout_s:g} s: {error}."
                " Check that all ranks were started, that each reaches the address and that the"
                f" port is free (MASTER_ADDR, MASTER_PORT).{_hint_of_restart()}"
            ) from error

    @override
    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        config = self.config
        root = self.lightning_module.trainer.default_root_dir
        if config.calibration_dir is None and "://" not in root:  # a bucket is no folder
            config = replace(config, calibration_dir=str(Path(root) / "gradsched"))
        self._checked_epoch, self._is_over, self._has_no_loss = -1, False, False
        # Lightning's forward is the training_step: what else calls the module may be on one rank.
        self._scheduler = GradientScheduler(self.lightning_module, config, marks_forward=True)
        if self._resume.plan is not None:
            self._scheduler.restore_plan(self._resume.plan)
        self._resume.put_back_lagged(self._scheduler)
        self._register_ddp_hooks()

    @override
    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        if self.config.gradient_lag:
            check_optimizers(self.optimizers, getattr(self.precision_plugin, "scaler", None))
        for optimizer in self.optimizers if self._scheduler is not None else ():
            if self.config.overlap_forward:
                self.scheduler.overlap(optimizer)
            if self.config.shard_optimizer:
                self.scheduler.shard(optimizer)

    @override
    def _register_ddp_hooks(self) -> None:
        """Lightning does so on CUDA alone."""
        hook = self._ddp_comm_hook
        if hook is not None:
            wrap = self._ddp_comm_wrapper
            hook = hook if wrap is None else wrap(hook)
            self.scheduler.register_comm_hook(self._ddp_comm_state, hook)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        dataloader = super().process_dataloader(dataloader)
        module = self.lightning_module
        if module is not None and module.trainer.training:
            self._resume.before_iterator()
        if self.config.uneven_batches == "refuse" or module is None or not module.trainer.training:
            return dataloader
        check_joinable(module, self.config.uneven_batches)
        return pad(dataloader, self.scheduler, self.global_rank)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        with self.scheduler.forward_pass():
            output = None if self._is_over else super().training_step(*args, **kwargs)
        module = self.lightning_module
        self._has_no_loss = output is None and module is not None and module.automatic_optimization
        # Lightning would run no backward, and the other ranks would wait for this one's.
        return self.scheduler.zero_loss() if self._has_no_loss else output

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if closure_loss.requires_grad:
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        return self._backward_of_constant(closure_loss, optimizer, *args, **kwargs)

    def _backward_of_constant(self, loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add zeros on this rank; if all ranks do, raise torch's error on all of them."""
        warnings.warn(
            f"rank {self.global_rank}: the loss depends on no parameter, so this rank adds zeros to"
            " the mean over ranks. Where that is meant, return None from training_step.",
            stacklevel=2,
        )
        result = super().backward(loss + self.scheduler.zero_loss(), *args, **kwargs)
        if self.scheduler.reduces() and self._has_no_gradients():
            super().backward(loss, *args, **kwargs)
        return result

    @override
    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,
        **kwargs: Any,
    ) -> Any:
        def closure_of_all_ranks() -> Any:
            loss = closure()
            # Loss scaling is told by None that there is nothing to unscale: no rank had a loss.
            return None if self._has_no_loss and self._has_no_gradients() else loss

        return super().optimizer_step(optimizer, closure_of_all_ranks, model, **kwargs)

    def _has_no_gradients(self) -> bool:
        module = self.lightning_module
        return module is not None and all(param.grad is None for param in module.parameters())

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if self.config.uneven_batches != "refuse":
            self._follow_uneven(self.lightning_module, batch_idx)
        # Where steps are counted instead, a rank may be in another epoch and none waits at its end.
        elif trainer.max_steps == -1 and trainer.current_epoch != self._checked_epoch:
            self._checked_epoch = trainer.current_epoch
            self.scheduler.check_batches(trainer.num_training_batches)

    def _follow_uneven(self, module: Any, batch_idx: int) -> None:
        loader = module.trainer.train_dataloader
        if not isinstance(loader, PaddedLoader) or not module.automatic_optimization:
            raise GradSchedError(
                "uneven_batches: expected one train dataloader and automatic optimization, got"
                f" {type(loader).__name__} and automatic_optimization="
                f"{module.automatic_optimization}; set uneven_batches='refuse'"
            )
        self._is_over = loader.is_over(batch_idx)
        if self.config.uneven_batches == "active":
            first = batch_idx - batch_idx % module.trainer.accumulate_grad_batches
            self.scheduler.divide_by(loader.n_active(first))

    @override
    def on_validation_start(self) -> None:
        self._flush()
        super().on_validation_start()
        module = self.lightning_module
        # DDP does so before the first batch of it.
        if module is not None and module.trainer.state.fn == TrainerFn.FITTING:
            self.scheduler.sync_buffers()

    @override
    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        with self.scheduler.no_sync():
            yield

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        self.scheduler.prepare(closure_loss)

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        assert self.lightning_module is not None
        self._resume.before_first_batch(self.lightning_module.trainer)

    @override
    def on_train_end(self) -> None:
        self._flush()
        super().on_train_end()
        self.finish_checkpoints()
        # Rank 0's word for all: the report compares the ranks, so either all take part or none.
        path: str | None = self.broadcast(self.config.trace_path)
        if path is not None:
            write_trace(self.scheduler, Path(path), is_writer=self.global_rank == 0)

    def _flush(self) -> None:
        """Not left to who looks first, so that an error comes on all ranks."""
        if self._scheduler is not None:
            self._scheduler.flush()

    @override
    def teardown(self) -> None:
        if self._scheduler is not None:
            self._scheduler.detach()
        if self._preemption is not None and self.lightning_module is not None:
            self._preemption.release(self.lightning_module.trainer)
        super().teardown()

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        _registration.add_to(strategy_registry, cls)


class GradSchedStrategy(GradSchedMixin, DDPStrategy):
    """``Trainer(strategy="gradsched")``: a drop-in for ``"ddp"`` that schedules its reductions.

    Args:
        config: a ``GradSchedConfig``; or give its fields as keywords.

    ``accelerator`` to ``start_method`` are as in ``DDPStrategy``; a communication hook works on CPU
    too. The LightningModule is not wrapped: checkpoints and ``isinstance`` are as on one device.

    Raises:
        TypeError: an unknown keyword; the message lists the valid ones.
        ValueError: a config field outside its range.
    """


def _hint_of_restart() -> str:
    """torchrun's ranks meet in a store that still holds the addresses of those before them."""
    environ = os.environ
    shares = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shares or environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return ""
    return (
        " torchrun has restarted this rank: start torchrun with"
        " TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment (pytorch/pytorch#135712)."
    )


def read_config(config: GradSchedConfig | None, given: dict[str, Any]) -> GradSchedConfig:
    """What a strategy was given, as ``config`` or as keywords; a ``TypeError`` for all else."""
    for name in given:
        if name in _REFUSED:
            raise TypeError(f"gradsched takes no {name!r}: {_REFUSED[name]}")
        if name not in _CONFIG_FIELDS:
            raise TypeError(f"gradsched takes no {name!r}; its settings are {_CONFIG_FIELDS}")
    if config is not None and given:
        raise TypeError(f"give either config= or its fields as keywords, got both: {sorted(given)}")
    return config or GradSchedConfig(**given)
