"""With ``torch.autograd.detect_anomaly``: names the parameters and ranks of a NaN."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lightning_gradsched.errors import ReductionError
from lightning_gradsched.naming import some_of
from lightning_gradsched.runtime.bucket import Bucket
from lightning_gradsched.runtime.watchdog import Watchdog


class NanWatch:
    """Raises on all ranks alike where a reduced gradient holds NaN, as anomaly mode does locally.

    Not on inf, which loss scaling expects to meet. Outside anomaly mode it looks at nothing. Ranks
    need not all be in it: that the mean holds NaN they see by themselves, and whose part it was
    they ask by the roll call, not by a collective.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._local: dict[int, list[str]] = {}  # by group, in the running backward

    @staticmethod
    def is_on() -> bool:
        """Whether there is anything to look for."""
        return _is_on()

    def look_before(self, bucket: Bucket) -> None:
        """Note which members of the filled ``bucket`` are not finite on this rank."""
        if not _is_on():
            return
        self._local[bucket.number] = [
            slot.name
            for slot, view in zip(bucket.slots, bucket.views, strict=True)
            if not view.isfinite().all()
        ]
        names = [name for group in self._local.values() for name in group]
        self._watchdog.remark(f"gradients of {some_of(names)}" if names else "")

    def look_after(self, buckets: Iterable[Bucket]) -> None:
        """Raise ``ReductionError`` if the mean over ranks holds NaN."""
        self._local.clear()
        if not _is_on():
            return
        names = [
            slot.name
            for bucket in buckets
            for slot, view in zip(bucket.slots, bucket.views, strict=True)
            if view.isnan().any()
        ]
        if names:
            remarks, silent = self._watchdog.remarks()
            parts = [f"rank {rank} sent NaN or inf in {what}" for rank, what in remarks.items()]
            parts += [f"rank {rank} did not answer what it sent" for rank in silent]
            raise ReductionError(
                f"detect_anomaly: the reduced gradients of {some_of(names)} hold NaN;"
                f" {'; '.join(parts) or 'no rank sent NaN or inf: the sum overflowed'}"
            )


def _is_on() -> bool:
    return torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled()
