"""Uneven data: a rank that has run out of batches goes on with the others, and adds zeros.

[Note: a turn] With each batch, a rank tells the others whether it has one: a sum of two small
integers that begins as the batch is drawn and runs beside the forward. A rank that has none waits
for it at once: where no rank has one, the pass is over, on all of them in the same turn. A rank
that has one goes on; it needs the sum only if it divides by the number of ranks that had data.
The turns are the same on all ranks, so the sum has its place in the order of collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.collectives import Collectives, PendingReduction

Batch = TypeVar("Batch")
DIVISORS = ("all", "active")


def check_joinable(module: nn.Module, divide_by: str) -> None:
    """Raise for what cannot be; local, so all ranks must ask the same."""
    if divide_by not in DIVISORS:
        raise ValueError(f"divide_by: expected one of {DIVISORS}, got {divide_by!r}")
    synced = [name for name, child in module.named_modules() if isinstance(child, nn.SyncBatchNorm)]
    if synced:
        raise GradSchedError(
            f"expected layers whose forward needs no other rank, got SyncBatchNorm {synced}: a rank"
            " without batches runs no forward, and the others would wait for it. Use BatchNorm, or"
            " give all ranks as many batches."
        )


class Join:
    """One pass over batches of which ranks may have other numbers; see [Note: a turn].

    ``settle``: brings this rank in step with the others after a backward that was cut off.
    """

    def __init__(
        self, collectives: Collectives, settle: Callable[[], None], divide_by: str
    ) -> None:
        self._collectives = collectives
        self._settle = settle
        self._divides_by_active = divide_by == "active"
        self._is_out = False  # of batches
        self._had_data = False  # since the last reduction
        self._has_skipped = False  # the backward of this turn
        # How many ranks have a batch in this turn, and how many had one since the last reduction.
        self._status: PendingReduction | None = None

    def turns(self, batches: Iterable[Batch]) -> Iterator[Batch | None]:
        """Each batch of this rank, then None for as long as another rank has one."""
        for batch in batches:
            self._begin_turn(has_batch=True)
            yield batch
        self._is_out = True
        while self._begin_turn(has_batch=False).values()[0] > 0:
            self._has_skipped = False
            yield None
            if not self._has_skipped:
                raise GradSchedError(
                    "expected skip_backward() for the batch of None that join gave to rank"
                    f" {self._collectives.global_rank}, got no call: where a batch is None, call"
                    " scheduler.skip_backward() instead of forward and backward"
                )

    def _begin_turn(self, *, has_batch: bool) -> PendingReduction:
        self._settle()
        if self._status is not None:
            self._status.wait()  # that of the turn before; see Bucket.work
        self._had_data |= has_batch
        self._status = self._collectives.begin_sum(
            [has_batch, self._had_data], "all ranks' word on whether they have a batch"
        )
        return self._status

    @contextmanager
    def skipping(self, params: Iterable[Tensor]) -> Iterator[bool]:
        """This rank's backward is skipped within it; gives whether there was no forward either.

        Where the divisor leaves this rank out, so must the sum: what ``.grad`` holds from an
        earlier backward is set aside, as the active ranks have it too.
        """
        self._has_skipped = True
        aside = []
        if self._divides_by_active and not self._had_data:
            # Copies: it may be a view of a bucket, which is filled with zeros now.
            aside = [(p, p.grad.clone()) for p in params if p.grad is not None]
        for param, _ in aside:
            param.grad = None
        yield self._is_out
        for param, grad in aside:
            if param.grad is None:  # no rank had a gradient of it
                param.grad = grad

    def reduced(self) -> int | None:
        """After each reduction: how many ranks had data, if its sum is to be divided by that."""
        self._had_data = False
        if not self._divides_by_active or self._status is None:
            return None
        return self._status.values()[1] or None
