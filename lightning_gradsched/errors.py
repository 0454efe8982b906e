"""Errors that users meet, each saying what was expected, what was found and what to do next."""

from __future__ import annotations


class GradSchedError(RuntimeError):
    """Base of all errors that this package raises on purpose."""


class ProfileError(GradSchedError):
    """A profile with impossible numbers, of another kind, or of another model."""


class ModelError(GradSchedError):
    """A module or experiment that cannot be built, or whose training step does not work."""


class PlanError(GradSchedError):
    """A group plan or schedule that does not carry every parameter exactly once."""


class ConsensusError(GradSchedError):
    """The ranks do not hold the same model, configuration or plan."""


class ReductionError(GradSchedError):
    """A gradient that cannot be reduced, or a reduction that did not finish."""


class ProcessGroupError(GradSchedError):
    """The ranks could not form a process group."""


class CheckpointError(GradSchedError):
    """A checkpoint that is damaged, that would run code, or that could not be written."""
