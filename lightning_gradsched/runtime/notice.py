"""A word that any rank may have for all of them, and that costs no message of its own.

[Note: the notice] It is one of the signals that ride behind the counts of a step's last group (see
runtime/signals.py), so all ranks hear it in the same step. On a GPU it is read one backward later:
then it lies on the host already, and nobody waits for the device.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lightning_gradsched.runtime.signals import Signal


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

    def reduced(self, heard: Collection[Signal]) -> None:
        """One more backward is reduced, and ``heard`` is what it has brought."""
        self.n_reduced += 1
        self.heard |= Signal.NOTICE in heard

    def reduced_on_device(self, place: Tensor) -> None:
        """As ``reduced``, of the backward before; ``place`` is the sum of this one's, on a GPU."""
        self.n_reduced += 1
        before = self._on_its_way
        host = torch.empty_like(place, device="cpu", pin_memory=True)
        host.copy_(place, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(place.device))
        self._on_its_way = host, event
        if before is not None:
            before[1].synchronize()
            # Not by NaN: that is what a backward sends that was cut off.
            self.heard |= bool(before[0].abs() > 0)
