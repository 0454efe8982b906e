"""The flat buffer that carries a group of gradients."""

from __future__ import annotations

from collections import Counter
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

    UNSEEN = auto()  # never met: no graph walk reached it and no hook has fired
    DIRECT = auto()  # from the backward itself: the engine can say beforehand whether it will come
    NESTED = auto()  # from a backward inside a node (re-entrant checkpoint), which hides it
    REPEATED = auto()  # more than once in one backward: final only when all of it has ended


@dataclass(eq=False, slots=True)
class Tally:
    """Gradients that have arrived; ``fired`` keeps those of ``no_sync`` until a reduction."""

    fired: list[Slot] = field(default_factory=list)
    pending: int = HOLD


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


@dataclass(eq=False, slots=True)
class Bucket(Tally):
    """One group's flat buffer: its gradients in order, then one count a parameter.

    The counts ride in the same all-reduce: a parameter whose reduced count is zero was used by no
    rank, and its ``.grad`` stays what it was. ``flat`` lives as long as the plan, and ``.grad`` of
    its parameters are views of it between a reduction and the next ``zero_grad``.
    """

    number: int = 0
    slots: Sequence[Slot] = ()
    work: Work | None = None
    # Some member's gradient cannot be told to be final before backward ends.
    holds: bool = field(init=False)
    flat: Tensor = field(init=False)
    views: list[Tensor] = field(init=False)
    _counts: Tensor = field(init=False)
    _absent: list[int] = field(init=False, default_factory=list)
    _opened_at: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        first = self.slots[0].param
        sizes = [slot.param.numel() for slot in self.slots]
        self.flat = torch.zeros(sum(sizes) + len(sizes), dtype=first.dtype, device=first.device)
        *pieces, self._counts = self.flat.split([*sizes, len(sizes)])
        self.views = [
            _shaped_like(slot.param, piece) for slot, piece in zip(self.slots, pieces, strict=True)
        ]
        for slot in self.slots:
            slot.tally = self
        self.update_holds()

    def __str__(self) -> str:
        names = ", ".join(slot.name for slot in self.slots[:3])
        more = f" and {len(self.slots) - 3} more" if len(self.slots) > 3 else ""
        return f"group {self.number} ({names}{more})"

    @property
    def nbytes(self) -> int:
        return self.flat.nbytes

    def open(self, pending: int) -> None:
        """Begin to count the gradients of one backward; with ``HOLD`` it never counts as full."""
        self.pending = pending
        self._opened_at = len(self.fired)

    @property
    def n_arrived(self) -> int:
        """How many gradients have come since ``open``."""
        return len(self.fired) - self._opened_at

    def learn(self, coming: Container[Slot]) -> None:
        """Note where this backward's gradients came from; ``coming``: those that it announced."""
        arrivals = Counter(self.fired[self._opened_at :])
        for slot in self.slots:
            if arrivals[slot] > 1:
                slot.origin = Origin.REPEATED
            elif arrivals[slot] == 1 and slot.origin is Origin.UNSEEN:
                slot.origin = Origin.DIRECT if slot in coming else Origin.NESTED
        self.update_holds()

    def update_holds(self) -> None:
        self.holds = any(slot.origin in (Origin.UNSEEN, Origin.REPEATED) for slot in self.slots)

    def reset(self) -> None:
        self.fired.clear()
        self.pending = HOLD
        self.work = None

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
        used = set(self.fired)
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
            sparse = [
                s.name for s in self.slots if s.param.grad is not None and s.param.grad.is_sparse
            ]
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
