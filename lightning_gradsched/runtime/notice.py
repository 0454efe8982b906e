"""A word that any rank may have for all of them, and that costs no message of its own.

[Note: the notice] It is one more number at the end of the last bucket's counts, zero or not, so the
all-reduce that is there anyway tells every rank of it in the same step. Whoever reads it decides as
all ranks do. On a GPU the number is read one backward later: then it lies on the host already, and
nobody waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Notice:
    """Attributes: ``given``: set on any rank, by a signal handler too, to be heard by all.

    ``heard``: whether a reduction has brought it; true on all ranks after the same backward.
    ``n_reduced``: how many reductions this rank has been through.
    """

    def __init__(self) -> None:
        self.given = False
        self.heard = False
        self.n_reduced = 0
        self._on_its_way: tuple[Tensor, torch.cuda.Event] | None = None

    def write(self, place: Tensor) -> None:
        """Put this rank's word into ``place`` before it is reduced."""
        place.fill_(float(self.given))

    def read(self, place: Tensor) -> None:
        """Take what ``place`` has been reduced to."""
        self.n_reduced += 1
        if place.device.type != "cuda":
            self.heard |= _is_set(place)
            return
        before = self._on_its_way
        host = torch.empty_like(place, device="cpu", pin_memory=True)
        host.copy_(place, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(place.device))
        self._on_its_way = host, event
        if before is not None:
            before[1].synchronize()
            self.heard |= _is_set(before[0])


def _is_set(place: Tensor) -> bool:
    # Not so by NaN: that is what a backward sends that was cut off.
    return bool((place.abs() > 0).any())
