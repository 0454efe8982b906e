"""Errors that the user can mend, and how the programs print them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend; its text says expected, got, and the next thing to type."""


class DataFileError(UserError):
    """A data file is damaged, foreign, or cannot be written."""


class TruncatedFileError(DataFileError):
    """A data file is shorter than it was when it was written."""


class SchemaMismatchError(DataFileError):
    """A data file holds other datasets, shapes or types than its schema says."""


class BadSampleError(DataFileError):
    """A sample holds NaN, infinities, or labels out of range."""


class GridError(DataFileError):
    """Latitudes or longitudes are missing, out of order or range, or of another grid."""


class ChannelError(DataFileError):
    """A channel is missing, unknown, or in another place than expected."""


class EmptySplitError(UserError):
    """A split holds no sample, or fewer than its ranks need for one step."""


class DiskFullError(UserError):
    """A disk, or the memory behind shared buffers, has too little room."""


class LoaderError(UserError):
    """A process that loads data died, or did not answer in time."""


class ResumeError(UserError):
    """A position within an epoch that does not fit the data, the ranks or the batches."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class PhysicsError(UserError):
    """A physical quantity has a wrong shape, or a value that means nothing."""


class TrainingDataError(UserError):
    """Samples are missing, of wrong shapes, or have a covariance that cannot be inverted."""


class NonFiniteError(UserError):
    """Training met an infinite or undefined gradient."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn mendable errors of a program into one paragraph on stderr and exit status 1.

    `HYDRA_FULL_ERROR=1` in the environment lets the traceback through, as it does for Hydra itself.
    """
    try:
        yield
    except mendable() as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # Flushed before exit: the launcher of rank 0 may kill this process soon after.
        rank = os.environ.get("LOCAL_RANK")
        prefix = "" if rank is None else f"[rank {rank}] "
        print(f"{prefix}{paragraph(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def mendable() -> tuple[type[Exception], ...]:
    """Errors that a user can mend, this project's and those of Hydra and Lightning."""
    # Imported here: processes that load data need the classes above, and none of these packages.
    from hydra.errors import InstantiationException
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    return UserError, MisconfigurationException, InstantiationException, OmegaConfBaseException


def paragraph(error: BaseException) -> str:
    """`NonFiniteError: ...`; a constructor's own error is shown, not Hydra's wrapping."""
    from hydra.errors import InstantiationException

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        location = str(error).rpartition("full_key: ")[2]
        error = type(error.__cause__)(f"in the configuration `{location}`: {error.__cause__}")
    return f"{type(error).__name__}: {error}"
