"""Errors that the user can mend, and how the programs print them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException


class UserError(Exception):
    """A mistake that the user can mend; its text says expected, got, and the next thing to type."""


class DataFileError(UserError):
    """A data file is damaged, foreign, or cannot be written."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class NonFiniteError(UserError):
    """Training met an infinite or undefined gradient."""


MENDABLE = (
    UserError,
    MisconfigurationException,
    InstantiationException,
    OmegaConfBaseException,
)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn mendable errors of a program into one paragraph on stderr and exit status 1.

    `HYDRA_FULL_ERROR=1` in the environment lets the traceback through, as it does for Hydra itself.
    """
    try:
        yield
    except MENDABLE as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # Flushed before exit: the launcher of rank 0 may kill this process soon after.
        rank = os.environ.get("LOCAL_RANK")
        prefix = "" if rank is None else f"[rank {rank}] "
        print(f"{prefix}{paragraph(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def paragraph(error: BaseException) -> str:
    """`NonFiniteError: ...`; a constructor's own error is shown, not Hydra's wrapping."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        location = str(error).rpartition("full_key: ")[2]
        error = type(error.__cause__)(f"in the configuration `{location}`: {error.__cause__}")
    return f"{type(error).__name__}: {error}"
