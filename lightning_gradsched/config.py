"""The user's few knobs."""

from __future__ import annotations

from dataclasses import dataclass
from signal import Signals

from lightning_gradsched.core.plan import PLANNER_NAMES, UNMEASURED_PLANNERS, Planner
from lightning_gradsched.core.schedule import SCHEDULE_CHOICES

MIB = 2**20
PLANNER_CHOICES = (*PLANNER_NAMES, "auto")
UNEVEN_CHOICES = ("refuse", "all", "active")
# What a user may write -> torch's name.
REDUCE_DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
REDUCTION_CHOICES = ("flat", "hierarchical", "auto")


@dataclass(frozen=True, slots=True)
class GradSchedConfig:
    """Settings of the engine; every field is a keyword of ``GradSchedStrategy`` too.

    Attributes:
        planner: how gradients are grouped. From measurements of the first steps and the network:
            ``"auto"`` (the best predictions and DDP's own are tried on the job, the fastest stays),
            ``"optimal"`` (dynamic programming), ``"mg_wfbp"`` (MG-WFBP's merge), or a function of
            yours, ``(BackwardProfile, CostModel) -> GroupPlan``. From sizes alone: ``"ddp"`` (DDP's
            own caps of 1 and 25 MiB, over the real ready order), ``"fixed_size"`` (groups of
            ``group_nbytes``), ``"single"`` (one group), ``"per_tensor"`` (one group a parameter).
            On one rank, or with deterministic algorithms asked of torch, ``"auto"`` is ``"ddp"``.
        group_nbytes: bytes at which a group of ``"fixed_size"`` closes.
        schedule: when a full group leaves: ``"static"`` (in the plan's order, agreed beforehand),
            ``"negotiated"`` (as soon as all ranks have it, agreed while backward runs by a thread
            of its own: for graphs whose order differs by rank), or ``"auto"`` (static until the
            ranks are seen to wait for each other's order).
        record_every_n_steps: measure the timeline of one step in so many; 0 measures none.
        trace_path: where rank 0 writes the recorded steps when ``fit`` ends, the one of median
            exposed time as a Chrome trace; the overlap report is then printed too. None writes and
            prints nothing.
        reduce_dtype: dtype in which gradients travel and are summed: ``"float32"``, ``"bfloat16"``,
            ``"float16"`` (or ``"fp32"``, ``"bf16"``, ``"fp16"``); None: each in its own.
        broadcast_buffers: copy rank 0's buffers (batch-norm statistics) to all ranks before a
            forward in training, as DDP does; False leaves each rank's as they are after the start.
        uneven_batches: under Lightning, what to do where ranks have other numbers of training
            batches: ``"refuse"`` (an error on every rank before the epoch), or let the ranks that
            have run out add zeros, and divide the sum by the number of ``"all"`` ranks or of the
            ``"active"`` ones that have a batch. Plain loops use ``GradientScheduler.join()``.
        stall_timeout_s: the longest wait for another rank, in forming the process group (where
            Lightning does it) and in any collective of the engine. After a third of it a warning
            names what is waited for and the ranks that are missing; so does the error at its end.
        calibration_dir: the folder where rank 0 keeps the measured network for the next run on the
            same hosts, at most a week; None measures anew each time, but under Lightning keeps it
            in ``gradsched`` below the Trainer's ``default_root_dir``.
        preempt_signals: under Lightning, the names of the signals on which the ranks finish their
            step, save a checkpoint and exit, all in the same step; ``()`` leaves them to Lightning.
        reduction: how gradients are summed: ``"flat"`` (over all ranks at once), ``"hierarchical"``
            (inside each node, between nodes, inside again; gloo and parameters on the CPU only), or
            ``"auto"``: what the calibration finds faster, flat where nothing is measured.
        overlap_forward: let the end of backward leave groups under way, for the next forward to
            wait for where it uses them; then the optimizer updates their parameters. The same
            update as without. Needs ``schedule="static"``; see ``docs/overlap-forward.md``.
        scatter_gradients: with ``overlap_forward``, for steps that look at all gradients at once
            (clipping by norm, ``GradScaler``): let groups travel in halves, so that such a look
            waits for the first half only, where the planner finds that faster. None: where the
            first steps are seen to look, and it is possible; True: as if they did; False: never.
            Gloo and parameters on the CPU only; see ``docs/overlap-forward.md``.
        per_parameter_optimizers: class names of optimizers of yours, for ``overlap_forward``, that
            update each parameter from its own gradient alone, as those of torch that are known to.
        gradient_lag: 1: each backward gives out the mean of the gradients that the backward before
            has computed, whose reduction has had the whole step to itself; the first gives zeros.
            Another algorithm than without; see ``docs/gradient-lag.md``. Needs
            ``schedule="static"`` and no ``overlap_forward``. 0: no lag.
        shard_optimizer: have each rank keep the state of its part of every optimizer, update that
            part, and send the others its weights, which the next forward waits for where it uses
            them. The same update as without; see ``docs/shard-optimizer.md``.
        preflight: under torchrun and SLURM, have all ranks compare how they were started and what
            their nodes are before they form a process group; what is wrong is one report, and all
            ranks exit.

    Raises:
        ValueError: a field outside its range; the message names the field and the valid values.
    """

    planner: str | Planner = "auto"
    group_nbytes: int = 25 * MIB
    schedule: str = "static"
    record_every_n_steps: int = 20
    trace_path: str | None = None
    reduce_dtype: str | None = None
    broadcast_buffers: bool = True
    uneven_batches: str = "refuse"
    stall_timeout_s: float = 1800.0
    calibration_dir: str | None = None
    reduction: str = "auto"
    overlap_forward: bool = False
    scatter_gradients: bool | None = None
    per_parameter_optimizers: tuple[str, ...] = ()
    gradient_lag: int = 0
    shard_optimizer: bool = False
    preflight: bool = True
    preempt_signals: tuple[str, ...] = ("SIGUSR1", "SIGTERM")

    def __post_init__(self) -> None:
        if self.planner not in PLANNER_CHOICES and not callable(self.planner):
            raise ValueError(
                f"planner: expected one of {PLANNER_CHOICES} or a function, got {self.planner!r}"
            )
        if self.group_nbytes < 1:
            raise ValueError(f"group_nbytes: expected at least 1 byte, got {self.group_nbytes}")
        if self.schedule not in SCHEDULE_CHOICES:
            raise ValueError(f"schedule: expected one of {SCHEDULE_CHOICES}, got {self.schedule!r}")
        if self.record_every_n_steps < 0:
            raise ValueError(
                f"record_every_n_steps: expected 0 (never) or more, got {self.record_every_n_steps}"
            )
        if self.reduce_dtype is not None and self.reduce_dtype not in REDUCE_DTYPES:
            raise ValueError(
                f"reduce_dtype: expected one of {tuple(REDUCE_DTYPES)} or None,"
                f" got {self.reduce_dtype!r}"
            )
        if self.uneven_batches not in UNEVEN_CHOICES:
            raise ValueError(
                f"uneven_batches: expected one of {UNEVEN_CHOICES}, got {self.uneven_batches!r}"
            )
        object.__setattr__(self, "preempt_signals", tuple(self.preempt_signals))  # out of YAML
        for name in self.preempt_signals:
            if name not in Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
                raise ValueError(
                    "preempt_signals: expected names of signals that can be caught, such as"
                    f" 'SIGUSR1', got {name!r}"
                )
        if not self.stall_timeout_s > 0:
            raise ValueError(
                f"stall_timeout_s: expected a positive number, got {self.stall_timeout_s}"
            )
        if self.reduction not in REDUCTION_CHOICES:
            raise ValueError(
                f"reduction: expected one of {REDUCTION_CHOICES}, got {self.reduction!r}"
            )
        self._check_modes()

    def _check_modes(self) -> None:
        if self.gradient_lag not in (0, 1):
            raise ValueError(f"gradient_lag: expected 0 or 1, got {self.gradient_lag!r}")
        if self.gradient_lag and self.overlap_forward:
            raise ValueError(
                "gradient_lag: expected overlap_forward=False, as a lagged reduction has the next"
                " forward already, got both: leave one out"
            )
        if self.gradient_lag and self.schedule != "static":
            raise ValueError(
                "gradient_lag: expected schedule='static', as reductions of two steps are under way"
                f" at once, in one order, got schedule={self.schedule!r}"
            )
        if self.shard_optimizer and self.overlap_forward:
            raise ValueError(
                "shard_optimizer: expected overlap_forward=False, as weights are sent when all"
                " gradients of a step have come, got both: leave one out"
            )
        self._check_scatter()
        if self.overlap_forward and self.schedule != "static":
            raise ValueError(
                "overlap_forward: expected schedule='static', as the order into the forward is"
                f" fixed beforehand, got schedule={self.schedule!r}"
            )

    def _check_scatter(self) -> None:
        if self.scatter_gradients and not self.overlap_forward:
            raise ValueError(
                "scatter_gradients: expected overlap_forward=True, as the second half of a group"
                " travels in the next forward, got overlap_forward=False"
            )
        if self.scatter_gradients and self.reduce_dtype is not None:
            raise ValueError(
                "scatter_gradients: expected reduce_dtype=None, as gradients are summed by the"
                f" ranks that own them in their own dtype, got reduce_dtype={self.reduce_dtype!r}"
            )
        if self.scatter_gradients and self.reduction == "hierarchical":
            raise ValueError(
                "scatter_gradients: expected reduction='flat' or 'auto', as halves travel between"
                " all ranks at once, got reduction='hierarchical'"
            )

    @property
    def planner_name(self) -> str:
        """What the planner is called in plans, reports and errors."""
        if isinstance(self.planner, str):
            return self.planner
        return getattr(self.planner, "__name__", type(self.planner).__name__)

    @property
    def measures(self) -> bool:
        """Whether the planner plans from measured steps and a calibrated network."""
        return self.planner not in UNMEASURED_PLANNERS
