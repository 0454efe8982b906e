"""What all ranks must know of each other's data: errors, and which samples are bad."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import zoo.errors
from zoo.errors import LoaderError, UserError


class Agreement:
    """A group of all ranks for a few bytes a step, on the CPU and apart from the gradients'.

    Without a process group it is one rank that agrees with itself. All ranks call it alike.

    Args:
        timeout_s: the longest wait for another rank.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        self._timeout = timedelta(seconds=timeout_s)
        self._group: dist.ProcessGroup | None = None

    def raise_together(self, error: UserError | None) -> None:
        """Raise on every rank if any rank has an error: its own, or the first other's by rank.

        One all-reduce of four bytes; Lightning itself broadcasts as much in each step.
        """
        if not _is_distributed():
            if error is not None:
                raise error
            return
        failed = torch.tensor([error is not None], dtype=torch.int32)
        dist.all_reduce(failed, dist.ReduceOp.MAX, self._cpu_group())
        if not failed.item():
            return
        errors = self.gather(None if error is None else (type(error).__name__, str(error)))
        if error is not None:
            raise error
        rank, (kind, text) = next((r, e) for r, e in enumerate(errors) if e is not None)
        raise getattr(zoo.errors, kind, LoaderError)(f"on rank {rank}: {text}")

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, by rank."""
        if not _is_distributed():
            return [value]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value, self._cpu_group())
        return gathered

    def _cpu_group(self) -> dist.ProcessGroup | None:
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self._group


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
