"""The user's few knobs."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradsched.core.plan import PLANNER_NAMES, UNMEASURED_PLANNERS, Planner

MIB = 2**20
PLANNER_CHOICES = (*PLANNER_NAMES, "auto")
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
        record_every_n_steps: measure the timeline of one step in so many; 0 measures none.
        trace_path: where rank 0 writes the recorded steps when ``fit`` ends, the one of median
            exposed time as a Chrome trace; the overlap report is then printed too. None writes and
            prints nothing.
        stall_timeout_s: the longest wait for another rank, in forming the process group (where
            Lightning does it) and in any collective of the engine's own group.
        calibration_dir: the folder where rank 0 keeps the measured network for the next run on the
            same hosts, at most a week; None measures anew each time, but under Lightning keeps it
            in ``gradsched`` below the Trainer's ``default_root_dir``.
        reduction: how gradients are summed: ``"flat"`` (over all ranks at once), ``"hierarchical"``
            (inside each node, between nodes, inside again; gloo and parameters on the CPU only), or
            ``"auto"``: what the calibration finds faster, flat where nothing is measured.

    Raises:
        ValueError: a field outside its range; the message names the field and the valid values.
    """

    planner: str | Planner = "auto"
    group_nbytes: int = 25 * MIB
    record_every_n_steps: int = 20
    trace_path: str | None = None
    stall_timeout_s: float = 1800.0
    calibration_dir: str | None = None
    reduction: str = "auto"

    def __post_init__(self) -> None:
        if self.planner not in PLANNER_CHOICES and not callable(self.planner):
            raise ValueError(
                f"planner: expected one of {PLANNER_CHOICES} or a function, got {self.planner!r}"
            )
        if self.group_nbytes < 1:
            raise ValueError(f"group_nbytes: expected at least 1 byte, got {self.group_nbytes}")
        if self.record_every_n_steps < 0:
            raise ValueError(
                f"record_every_n_steps: expected 0 (never) or more, got {self.record_every_n_steps}"
            )
        if not self.stall_timeout_s > 0:
            raise ValueError(
                f"stall_timeout_s: expected a positive number, got {self.stall_timeout_s}"
            )
        if self.reduction not in REDUCTION_CHOICES:
            raise ValueError(
                f"reduction: expected one of {REDUCTION_CHOICES}, got {self.reduction!r}"
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
