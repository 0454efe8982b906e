"""GradientScheduler: the engine's life cycle on one module, with or without Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim import Optimizer

import lightning_gradsched
from lightning_gradsched.config import REDUCE_DTYPES, GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.anomaly import NanWatch
from lightning_gradsched.runtime.buffers import BufferSync
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.comm_hook import CommHook, HookTransport, check_registration
from lightning_gradsched.runtime.inspection import Inspection
from lightning_gradsched.runtime.join import Batch, Join, check_joinable
from lightning_gradsched.runtime.launch_rule import LaunchRule
from lightning_gradsched.runtime.modes import Modes, launches_of
from lightning_gradsched.runtime.notice import Notice
from lightning_gradsched.runtime.planning import Planning
from lightning_gradsched.runtime.recorder import Clock, CpuClock, CudaClock, StepRecords
from lightning_gradsched.runtime.reducer import Reducer
from lightning_gradsched.runtime.roots import RootWatch
from lightning_gradsched.runtime.step_end import StepEnd
from lightning_gradsched.runtime.trainable import Trainable
from lightning_gradsched.runtime.transport import CastTransport


class GradientScheduler(Inspection):
    """Averages a module's gradients over the ranks while backward computes them.

    Attaches hooks to ``module``, on its own device already, and never wraps it. All ranks must make
    it alike; rank 0's parameters and buffers are copied to the others. From then on
    ``loss.backward()`` leaves in ``.grad`` the mean over ranks, as DDP does.

    Args:
        module: the model; its trainable parameters are those that require gradients.
        config: how to group and record; the defaults where None.
        process_group: the ranks to average over, and the group that carries the reductions: nothing
            else may use it while a backward runs. Where None: all ranks, by a group of its own.
        marks_forward: whether the caller enters ``forward_pass()`` for each forward in training.
            Else every call of ``module`` in training mode is taken for one, and all ranks must
            make it.

    Raises:
        ConsensusError: on every rank, if the ranks hold different models.
        GradSchedError: no process group, or a module without parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        config: GradSchedConfig | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        marks_forward: bool = False,
    ) -> None:
        if not dist.is_initialized():
            raise GradSchedError(
                "GradientScheduler needs a process group, got none: call"
                " torch.distributed.init_process_group() first"
            )
        self._module = module
        self._config = config or GradSchedConfig()
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._collectives = Collectives(process_group, device, self._config.stall_timeout_s)
        consensus.check_settings(
            self._collectives,
            {
                "lightning_gradsched": lightning_gradsched.__version__,
                "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
                **consensus.settings_to_agree(self._config),
            },
        )
        clock: Clock = CudaClock() if self._collectives.on_cuda else CpuClock()
        self._records = StepRecords(clock, self._config.record_every_n_steps)
        self._planning = planning = Planning(module, self._config, self._collectives, clock)
        reduction = self._planning.reduction
        launches = launches_of(self._config, reduction.carrier, self._collectives)
        self._reducer = Reducer({}, reduction.carrier, self._make_plan, self._step_ended, launches)
        self._launches = self._reducer.launches
        if self._config.reduce_dtype is not None:
            dtype = getattr(torch, REDUCE_DTYPES[self._config.reduce_dtype])
            self._launches.transport = CastTransport(reduction.carrier, dtype)
        watchdog = self._collectives.watchdog
        watchdog.also_abort(reduction.close)
        watchdog.describe_by(self._reducer.progress)
        self._launches.wait, self._launches.nan_watch = watchdog.wait, NanWatch(watchdog)
        self._rule = LaunchRule(self._config, self._collectives, self._launches)
        self._trainable = Trainable(module, self._collectives)
        self._join: Join | None = None  # while a pass over uneven batches runs
        self._n_active: int | None = None  # what the sum is divided by, where not by all ranks
        self._step_end = StepEnd(
            self._collectives,
            self._reducer,
            self._planning,
            self._rule,
            self._trainable,
            self._records,
            self._divisor,
        )
        self._launches.say = self._step_end.to_say
        self._modes = Modes(
            module,
            self._config,
            self._collectives,
            self._launches,
            self._trainable.params,
            lambda: planning.plan,
            planning.norms,
        )
        self._reducer.add(self._trainable.params, sparse=self._trainable.sparse)
        self._step_end.start()
        self._broadcast_state()
        self._buffer_sync = self._sync_of_buffers(process_group, device)
        if self._buffer_sync is not None and not marks_forward:
            self._buffer_sync.attach()
        begin = self._begin_with_modes if self._modes else self._begin
        self._roots = RootWatch(module, begin, lambda: not self._reducer.buckets)

    @property
    def notice(self) -> Notice:
        """By which any rank can tell all of something, in their next reduction."""
        return self._step_end.notice

    def prepare(self, loss: Tensor) -> None:
        """Announce that ``loss`` (or a multiple of it) is about to be differentiated.

        Needed only where the module's own ``forward`` was not called: a module that was tells of
        its outputs by itself. Without either, gradients are right but none is sent before the end.
        """
        self._roots.watch([loss], certain=True)

    def skip_backward(self) -> None:
        """Take part, by zeros, in a backward that other ranks run and this one does not.

        Call it where ``loss.backward()`` would stand: this rank issues the same collectives, and
        ``.grad`` becomes the mean over all ranks, as if its loss were constant. Within
        ``no_sync()`` it does nothing. The forward must have run, or ``with forward_pass(): pass``
        in its place where the module has buffers; not so for a batch of None out of ``join``.
        """
        if self.reduces():
            self._modes.before_skipped_backward()
        params = self._trainable.params.values()
        with self._join.skipping(params) if self._join is not None else nullcontext(False) as out:
            if out:
                with self.forward_pass():
                    pass
            loss = self.zero_loss()
            self.prepare(loss)
            loss.backward()

    def zero_loss(self) -> Tensor:
        """A loss of zero whose backward reaches no parameter, on the module's device."""
        device = next(self._module.parameters()).device
        with torch.inference_mode(False), torch.enable_grad():
            return torch.zeros((), device=device, requires_grad=True) * 0

    def join(self, batches: Iterable[Batch], divide_by: str = "all") -> Iterator[Batch | None]:
        """One pass over ``batches``, of which each rank may have another number.

        A rank that has run out gets None for each batch that others still have, and must call
        ``skip_backward()`` in the place of forward and backward, and go on with the rest of its
        step: so its weights and its optimizer's state stay those of the others. On all ranks the
        pass ends together. Every rank must go through it, and by ``break`` all or none may leave.

        Args:
            divide_by: ``"all"``: the gradients' sum is divided by the number of ranks;
                ``"active"``: of those that had a batch since the last reduction.

        Raises:
            ConsensusError: on every rank, if they give other values of ``divide_by``.
            GradSchedError: ``skip_backward()`` was not called for a batch of None; or the module
                has a SyncBatchNorm, whose forward waits for all ranks.
            ValueError: another ``divide_by``.
        """
        check_joinable(self._module, divide_by)
        self._reducer.settle()
        consensus.check_settings(self._collectives, {"divide_by": divide_by})
        self._join = Join(self._collectives, self._reducer.settle, divide_by)
        try:
            yield from self._join.turns(batches)
        finally:
            self._join = self._n_active = None

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, ``backward`` accumulates locally; the next one outside reduces the sum."""
        before = self._reducer.mute()
        try:
            yield
        finally:
            self._reducer.resume(before)

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """Have ``hook(state, bucket)`` average the gradients, as in torch's DDP.

        The gradients that ``bucket`` (a ``GradBucket``) holds are not divided by the number of
        ranks. Every rank must register the same hook, once, before its first backward; the ranks
        compare the hooks' names when they make the plan.

        Raises:
            GradSchedError: there is a hook, a plan or a ``reduce_dtype`` already, or
                ``overlap_forward`` or ``gradient_lag``.
        """
        check_registration(hook, self._launches.transport, self._config, self.plan)
        self._launches.transport = HookTransport(
            self._collectives,
            state,
            hook,
            self._collectives.watchdog.give_up_s,
            self._collectives.watchdog.missing,
        )

    def overlap(self, optimizer: Optimizer) -> None:
        """With ``overlap_forward``: have its step leave what is under way to the next forward.

        Without this call ``optimizer.step()`` waits for all. Local: a rank may decide by itself.

        Raises:
            GradSchedError: ``overlap_forward`` is not set; or the optimizer is not known to update
                each parameter from its own gradient alone (``per_parameter_optimizers``).
        """
        self._modes.overlap(optimizer)

    def shard(self, optimizer: Optimizer) -> None:
        """With ``shard_optimizer``: have each rank keep the state of its part, and update that.

        Every rank must call it, after its optimizer's parameters were given and before its first
        step; from then on ``optimizer.step()`` is collective. For a checkpoint, all ranks call
        ``optimizer.consolidate_state_dict()`` first, then rank 0 has the whole ``state_dict()``.

        Raises:
            GradSchedError: ``shard_optimizer`` is not set; or the optimizer is not known to update
                each parameter from its own gradient alone (``per_parameter_optimizers``).
        """
        self._modes.shard(optimizer)

    def flush(self) -> None:
        """Wait for all that is under way, and make the updates that are due.

        With ``overlap_forward``, who looks at a gradient or parameter does so unawares; call it
        before looking at an optimizer's state, and before native code reads parameters. Local.

        Raises:
            ReductionError: a group did not come within ``stall_timeout_s``.
        """
        self._modes.wait_for_all()

    @property
    def n_open(self) -> int:
        """How many groups are left to the next forward, on this rank, now."""
        return self._modes.n_open

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Take what runs within it for one forward of the module, whatever it calls of it.

        For training steps that call the module's layers, or the module more than once: rank 0's
        buffers are sent before it, if they are due, and not again within. Every rank must enter.
        """
        with self._buffer_sync.forward() if self._buffer_sync is not None else nullcontext():
            yield

    def sync_buffers(self) -> None:
        """Copy rank 0's buffers to all ranks now, as before an evaluation. Every rank must call it.

        Does nothing with ``broadcast_buffers=False``.
        """
        if self._buffer_sync is not None:
            self._buffer_sync.sync()

    def reduces(self) -> bool:
        """Whether a backward that begins now will be reduced: not so within ``no_sync``."""
        return not self._reducer.is_muted

    def check_batches(self, n_batches: float) -> None:
        """Raise ``ConsensusError`` on every rank unless all have as many. Every rank must call it.

        For loops that cannot go through ``join``; ``inf`` where the number is not known.
        """
        self._reducer.settle()
        consensus.check_batches(self._collectives, n_batches)

    def plan_state(self) -> dict[str, Any] | None:
        """The plan in force as plain values, for ``restore_plan`` of a later run; None without."""
        return self._planning.state()

    def restore_plan(self, state: Mapping[str, Any]) -> bool:
        """Go on with a plan that ``plan_state`` gave, before the first backward.

        False, and nothing is done, where it was made for other parameters, settings or ranks. All
        ranks must give the same.
        """
        is_restored = self._planning.restore(state)
        self._reducer.profiler = self._planning.profiler
        return is_restored

    def lagged_state(self) -> dict[str, Tensor] | None:
        """With ``gradient_lag``: the means that the next backward will give out, by parameter.

        For ``restore_lagged`` of a later run; also after ``detach``. The same on every rank; local,
        but it waits.

        Raises:
            ReductionError: a group did not come within ``stall_timeout_s``.
        """
        return self._modes.lagged_state()

    def restore_lagged(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what ``lagged_state`` gave, before the first backward; all ranks alike.

        Raises:
            GradSchedError: ``gradient_lag`` is 0, or ``state`` is of another model.
        """
        self._modes.restore_lagged(state)

    def agree_on_notice(self) -> None:
        """For steps without a reduction to tell it: one small all-reduce. Every rank must call."""
        self._reducer.settle()
        (given,) = self._collectives.max([int(self.notice.given)], "the ranks' notices")
        self.notice.heard |= given > 0

    def batches_by_rank(self, n_batches: int | None) -> list[int | None]:
        """What each rank gave, by rank. Every rank must call it."""
        self._reducer.settle()
        return self._collectives.gather(n_batches, "the number of batches of each rank")

    def divide_by(self, n_ranks: int) -> None:
        """From the next reduction on, divide by so many ranks: those that have data.

        Every rank must give the same, from 1 to their number. The ranks without data must
        ``skip_backward()``, and hold no gradients of an earlier backward when they do.
        """
        self._n_active = n_ranks

    def detach(self) -> None:
        """Remove all hooks: the module is as it was before. Reports can still be asked for.

        Raises:
            ReductionError: with ``overlap_forward`` or ``gradient_lag``, a group that was under way
                did not come.
        """
        try:
            self._modes.settle()
        finally:  # an error is the user's, but the module shall be as it was
            self._detach()

    def _detach(self) -> None:
        self._roots.detach()
        self._planning.close()
        self._planning.split.detach()
        self._rule.close()
        self._planning.reduction.close()
        # Before the reducer lets go of its works: see Bucket.work.
        in_use = self._launches.has_in_flight or self._modes.has_in_flight
        self._collectives.close(in_use=in_use)
        if self._buffer_sync is not None:
            self._buffer_sync.detach()
            self._buffer_sync = None
        self._modes.end()
        self._reducer.detach()

    def _sync_of_buffers(
        self, process_group: dist.ProcessGroup | None, device: torch.device
    ) -> BufferSync | None:
        if not self._config.broadcast_buffers or not any(True for _ in self._module.buffers()):
            return None
        own = None
        if self._modes and process_group is None:
            # What a forward begins with shall not queue behind what it may wait for later.
            own = Collectives(None, device, self._config.stall_timeout_s)
            own.watchdog.describe_by(self._reducer.progress)
        return BufferSync(
            self._module, self._collectives, self.reduces, self._reducer.settle, own=own
        )

    def _broadcast_state(self) -> None:
        state = (*self._module.parameters(), *self._module.buffers())
        self._collectives.broadcast([tensor.detach() for tensor in state])

    def _make_plan(self, seen: Sequence[Sequence[str]]) -> tuple[GroupPlan, ReductionSchedule]:
        transport = self._launches.transport
        hook = transport.name if isinstance(transport, HookTransport) else None
        consensus.check_settings(self._collectives, {"communication hook": hook})
        return self._step_end.plan(seen)

    def _begin(self, roots: Sequence[Node], certain: bool) -> None:
        """In the backward of ``roots``, before all else."""
        self._step_end.begin_with()
        self._reducer.begin(roots, certain=certain)

    def _begin_with_modes(self, roots: Sequence[Node], certain: bool) -> None:
        self._modes.before_backward()
        self._begin(roots, certain)

    def _step_ended(self) -> None:
        self._step_end.follow()

    def _divisor(self) -> int | None:
        if self._join is not None:
            self._n_active = self._join.reduced()
        return self._n_active
