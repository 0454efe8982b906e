"""The flat buffer that carries a group of gradients."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.collectives import Work
from lightning_gradsched.runtime.graph import accumulate_node

# More gradients than any bucket has: it closes at the end of backward and not before.
HOLD = 1 << 60


class Origin(Enum):
    """Where a parameter's gradient has been seen to come from; decides when absence is certain."""

    UNSEEN = auto()  # never met: no graph walk vouched for it and no hook has fired
    DIRECT = auto()  # from the backward itself: the engine can say beforehand whether it will come
    NESTED = auto()  # from a backward inside a node (re-entrant checkpoint), which hides it
    REPEATED = auto()  # more than once in one backward: final only when all of it has ended


@dataclass(eq=False, slots=True, kw_only=True)
class Tally:
    """Counts gradients as they come."""

    pending: int = HOLD  # how many are still to come before it is full
    arrived: dict[Slot, int] = field(default_factory=dict)  # in the running backward, in order
    kept: set[Slot] = field(default_factory=set)  # before it, within no_sync; not reduced yet
    # Some member's gradient cannot be told to be final before backward ends.
    holds: bool = False

    def hold(self, slot: Slot) -> None:
        """Wait for the end of backward from now on: ``slot`` comes more than once."""
        slot.origin = Origin.REPEATED
        self.pending = HOLD
        self.holds = True

    def keep(self) -> None:
        """Put what has arrived with what was kept: its backward ended without a reduction."""
        self.kept.update(self.arrived)
        self.arrived.clear()

    def clear(self) -> None:
        self.arrived.clear()
        self.kept.clear()


@dataclass(eq=False, slots=True)
class Slot:
    """A parameter and the tally that its gradient counts into."""

    name: str
    param: Tensor
    tally: Tally
    origin: Origin = Origin.UNSEEN
    # Held, so that autograd keeps this very node and `will_run` can be asked about it.
    node: Node = field(init=False)

    def __post_init__(self) -> None:
        self.node = accumulate_node(self.param)

    def move_to(self, tally: Tally) -> None:
        """Count into ``tally`` from now on, and there too what has come already."""
        if self in self.tally.arrived:
            tally.arrived[self] = self.tally.arrived.pop(self)
        if self in self.tally.kept:
            self.tally.kept.remove(self)
            tally.kept.add(self)
        self.tally = tally


@dataclass(eq=False, slots=True, kw_only=True)
class Bucket(Tally):
    """One group's flat buffer: its gradients in order, then one count a parameter.

    The counts ride in the same all-reduce: a parameter whose reduced count is zero was used by no
    rank, and its ``.grad`` stays what it was. ``flat`` lives as long as the plan, and ``.grad`` of
    its parameters are views of it between a reduction and the next ``zero_grad``.
    """

    number: int
    slots: Sequence[Slot]
    in_flight: bool = False
    # Kept until the next one, or the end of gloo's threads: they let go of a work after its waiter
    # has gone on, and the last to let go needs the interpreter. If that is ending, the process
    # aborts ("terminate called without an active exception").
    work: Work | None = None
    flat: Tensor = field(init=False)
    views: list[Tensor] = field(init=False)
    _counts: Tensor = field(init=False)
    _absent: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        first = self.slots[0].param
        sizes = [slot.param.numel() for slot in self.slots]
        self.flat = torch.zeros(sum(sizes) + len(sizes), dtype=first.dtype, device=first.device)
        *pieces, self._counts = self.flat.split([*sizes, len(sizes)])
        self.views = [
            _shaped_like(slot.param, piece) for slot, piece in zip(self.slots, pieces, strict=True)
        ]
        for slot in self.slots:
            slot.move_to(self)
        self._update_holds()

    def __str__(self) -> str:
        names = ", ".join(slot.name for slot in self.slots[:3])
        more = f" and {len(self.slots) - 3} more" if len(self.slots) > 3 else ""
        return f"group {self.number} ({names}{more})"

    def learn(self, coming: Container[Slot]) -> None:
        """Note where this backward's gradients came from; ``coming``: those that it announced."""
        for slot in self.slots:
            count = self.arrived.get(slot, 0)
            if count > 1:
                slot.origin = Origin.REPEATED
            elif count == 1 and slot.origin is Origin.UNSEEN:
                slot.origin = Origin.DIRECT if slot in coming else Origin.NESTED
        self._update_holds()

    def _update_holds(self) -> None:
        self.holds = any(slot.origin in (Origin.UNSEEN, Origin.REPEATED) for slot in self.slots)

    @torch.no_grad()
    def fill(self, scale: float) -> None:
        """Lay the members' gradients out in ``flat``, times ``scale``; views are there already."""
        self._absent = self._find_absent()
        self._set_absent_aside()
        moves = [
            (view, slot.param.grad)
            for slot, view in zip(self.slots, self.views, strict=True)
            if slot.param.grad is not None and slot.param.grad is not view
        ]
        if moves:
            self._copy(moves)
        self._counts.fill_(1)
        if self._absent:
            self._counts[self._absent] = 0
        self.flat.mul_(scale)

    def _find_absent(self) -> list[int]:
        # A gradient that came may be gone again: zero_grad after no_sync, an optimizer in backward.
        came = self.kept | self.arrived.keys()
        used = {slot for slot in came if slot.param.grad is not None}
        if len(used) == len(self.slots):
            return []
        return [i for i, slot in enumerate(self.slots) if slot not in used]

    def _set_absent_aside(self) -> None:
        """An absent member adds zeros, or the ``.grad`` it has kept from before.

        That one moves out of the bucket first, so that it survives where no rank uses the member.
        """
        for i in self._absent:
            param, view = self.slots[i].param, self.views[i]
            if param.grad is None:
                view.zero_()
            elif param.grad is view:
                param.grad = view.clone()

    def _copy(self, moves: Sequence[tuple[Tensor, Tensor]]) -> None:
        views, grads = zip(*moves, strict=True)
        if any(grad.is_sparse for grad in grads):
            sparse = [s.name for s in self.slots if getattr(s.param.grad, "is_sparse", False)]
            raise ReductionError(
                f"expected dense gradients, got sparse ones of {sparse}. Build the embedding with"
                " sparse=False; sparse gradients are not reduced yet."
            )
        torch._foreach_copy_(views, grads)

    def publish(self) -> None:
        """Make ``.grad`` of each member that any rank used the view of the reduced buffer."""
        unused = self._unused_everywhere() if self._absent else ()
        for i, (slot, view) in enumerate(zip(self.slots, self.views, strict=True)):
            if i not in unused:
                slot.param.grad = view

    def _unused_everywhere(self) -> set[int]:
        # Read only where this rank lacks a member: on a GPU it waits for the reduction.
        counts = self._counts.abs().tolist()
        return {i for i in self._absent if counts[i] == 0}


def _shaped_like(param: Tensor, piece: Tensor) -> Tensor:
    """``piece`` (1-d, ``param.numel()`` long) in the shape of ``param``, and its strides if dense.

    Gradients come in the strides of their parameter, so the copy into the buffer is a plain one.
    """
    strides = torch.empty_like(param, device="meta").stride()
    return piece.as_strided(param.size(), strides)
