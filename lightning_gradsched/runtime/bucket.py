"""What carries a group of gradients: a flat buffer, or one sparse tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import repeat
from math import nan
from operator import attrgetter, is_

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradsched.errors import ReductionError
from lightning_gradsched.naming import some_of
from lightning_gradsched.runtime.collectives import Work
from lightning_gradsched.runtime.graph import accumulate_node
from lightning_gradsched.runtime.lazy import OpenGradient, make_lazy
from lightning_gradsched.runtime.signals import Signal

# Loops over thousands of small parameters are part of every step: these run in C.
_grad_of = attrgetter("grad")

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
    is_sparse: bool = False  # its gradients are: such a one travels alone
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

    A parameter whose reduced count is zero was used by no rank, and its ``.grad`` stays what it
    was. Behind the counts there may be signals (see runtime/signals.py). This tail rides at the end
    of ``flat``, in the same all-reduce, unless it is kept apart from what others than the engine
    shall see. ``flat`` lives as long as the plan, and ``.grad`` of its parameters are views of it
    between a reduction and the next ``zero_grad``.
    """

    number: int
    slots: Sequence[Slot]
    counts_apart: bool = False
    n_signals: int = 0
    n_pieces: int = 1  # in which it travels
    in_flight: bool = False
    # Kept until the next one, or the end of gloo's threads: they let go of a work after its waiter
    # has gone on, and the last to let go needs the interpreter. If that is ending, the process
    # aborts ("terminate called without an active exception").
    work: Work | None = None
    # The mean, where the work leaves it in another tensor than ``flat``: of another dtype, or a
    # hook's. From the work's end to ``publish``.
    result: Tensor | None = None
    flat: Tensor = field(init=False)
    tail: Tensor = field(init=False)  # a count a parameter, then the signals
    views: list[Tensor] = field(init=False)
    params: list[Tensor] = field(init=False)
    _absent: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.params = [slot.param for slot in self.slots]
        self.lay_out()
        for slot in self.slots:
            slot.move_to(self)
        self._update_holds()

    def lay_out(self) -> None:
        """Make a buffer of zeros; who needs the one that there is has it by now."""
        first = self.slots[0].param
        sizes = [slot.param.numel() for slot in self.slots]
        n_tail = len(sizes) + self.n_signals
        zeros = partial(torch.zeros, dtype=first.dtype, device=first.device)
        if self.counts_apart:
            self.flat, self.tail = zeros(sum(sizes)), zeros(n_tail)
            pieces = self.flat.split(sizes)
        else:
            self.flat = zeros(sum(sizes) + n_tail)
            *pieces, self.tail = self.flat.split([*sizes, n_tail])
        self.views = [
            _shaped_like(slot.param, piece) for slot, piece in zip(self.slots, pieces, strict=True)
        ]

    def __str__(self) -> str:
        return f"group {self.number} ({some_of([slot.name for slot in self.slots])})"

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
    def fill(self) -> None:
        """Lay the members' gradients out in ``flat``, undivided; views are there already."""
        self.result = None
        grads: list[Tensor] = list(map(_grad_of, self.params))  # None where there is none
        self._absent = self._find_absent(grads)
        self._gather(grads)
        self.tail.fill_(1)
        if self._absent:
            self.tail[self._absent] = 0

    @torch.no_grad()
    def say(self, signals: Collection[Signal]) -> None:
        """After ``fill``: have this rank signal these, and no others."""
        said = self.tail[len(self.slots) :]
        said.zero_()
        for signal in signals:
            said[signal] = 1

    @torch.no_grad()
    def signals(self) -> frozenset[Signal]:
        """After the reduction: what any rank has signalled; nothing where a rank sent NaN."""
        self.receive()
        sums = self.tail[len(self.slots) :].abs().tolist()
        return frozenset(signal for signal, total in zip(Signal, sums, strict=True) if total > 0)

    def place_of(self, signal: Signal) -> Tensor:
        """After the reduction: its sum over the ranks, [1], which the host need not know yet."""
        self.receive()
        index = len(self.slots) + signal
        return self.tail[index : index + 1]

    @torch.no_grad()
    def void(self, from_piece: int = 0) -> None:
        """After ``fill``: send NaN, in the place of the gradients, the counts and the signals.

        ``from_piece``: those before have been sent.
        """
        unsent = self.flat[self.piece(from_piece).start :] if from_piece else self.flat
        unsent.mul_(nan)
        self.tail.mul_(nan)

    def piece(self, number: int) -> slice:
        """Its elements in ``flat``; of the last piece, the counts and signals too."""
        n = self.flat.numel()
        return slice(n * number // self.n_pieces, n * (number + 1) // self.n_pieces)

    def _find_absent(self, grads: list[Tensor]) -> list[int]:
        # A gradient that came may be gone again: zero_grad after no_sync, an optimizer in backward.
        all_arrived = len(self.arrived) == len(self.slots)
        if all_arrived and not any(map(is_, grads, repeat(None))):
            return []
        came = self.arrived if all_arrived else self.kept | self.arrived.keys()
        return [
            i
            for i, (slot, grad) in enumerate(zip(self.slots, grads, strict=True))
            if grad is None or slot not in came
        ]

    def _gather(self, grads: list[Tensor]) -> None:
        params, views = self.params, self.views
        if self._absent or any(map(is_, grads, views)):
            params, views, grads = self._find_moves()
        if params:
            self._copy(views, grads)
        # Now, so that autograd's own gradients are freed as backward goes on.
        for param, view in zip(params, views, strict=True):
            param.grad = view

    def _find_moves(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters whose gradients are not in their views, the views, the gradients."""
        self._set_absent_aside()
        moves = [
            (param, view, grad)
            for param, view in zip(self.params, self.views, strict=True)
            if (grad := param.grad) is not None and grad is not view
        ]
        params, views, grads = zip(*moves, strict=True) if moves else ((), (), ())
        return list(params), list(views), list(grads)

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

    def _copy(self, views: list[Tensor], grads: list[Tensor]) -> None:
        try:
            torch._foreach_copy_(views, grads)
        except RuntimeError as error:
            sparse = [s.name for s in self.slots if getattr(s.param.grad, "is_sparse", False)]
            if not sparse:
                raise
            raise ReductionError(
                f"expected dense gradients, got sparse ones of {sparse}. Gradients are taken for"
                " sparse where an nn.Embedding or nn.EmbeddingBag with sparse=True owns the"
                " parameter; use one, or make the gradient dense."
            ) from error

    @property
    def lacks_members(self) -> bool:
        """Whether some member had no gradient on this rank when it was filled."""
        return bool(self._absent)

    @torch.no_grad()
    def publish(self) -> None:
        """Make ``.grad`` of each member that any rank used the view of the reduced buffer."""
        self.receive()
        self.point_to_views(self.unused_everywhere() if self._absent else ())

    @torch.no_grad()
    def receive(self) -> None:
        """Have the views hold the mean, once its work has been waited for."""
        if self.result is not None:
            self._take(self.result)
            self.result = None

    def open_views(self, completes: Callable[[], None]) -> None:
        """While it is under way: have ``completes`` called first when one looks at a gradient."""
        make_lazy(self.views, OpenGradient, completes)

    def grads_are_views(self) -> Iterator[bool]:
        """For each member, whether its ``.grad`` is its view."""
        return map(is_, map(_grad_of, self.params), self.views)

    def point_to_views(self, but: Container[int]) -> None:
        """Make ``.grad`` of each member, ``but`` for these by their places, its view."""
        if all(self.grads_are_views()):
            return  # since they were filled, as most are
        for i, (slot, view) in enumerate(zip(self.slots, self.views, strict=True)):
            if slot.param.grad is not view and i not in but:
                slot.param.grad = view

    def _take(self, result: Tensor) -> None:
        flat = self.flat
        # Complex gradients travel in a real dtype as pairs.
        if flat.is_complex() and not result.is_complex():
            flat = torch.view_as_real(flat)
        flat.copy_(result.view_as(flat))

    def unused_everywhere(self) -> set[int]:
        """The places of members that no rank has used, once its work has been waited for."""
        # Read only where this rank lacks a member: on a GPU it waits for the reduction.
        counts = self.tail.abs().tolist()
        return {i for i in self._absent if counts[i] == 0}


@dataclass(eq=False, slots=True, kw_only=True)
class SparseBucket(Bucket):
    """A group of one parameter whose gradients are sparse: ``flat`` is that gradient itself.

    No buffer is kept, the indices being others each time; ``.grad`` becomes the reduced tensor.
    """

    counts_apart: bool = True

    def lay_out(self) -> None:
        (slot,) = self.slots
        self.flat = _no_rows(slot.param)
        self.tail = torch.zeros(1 + self.n_signals, device=slot.param.device)
        self.views = [self.flat]

    def _gather(self, grads: list[Tensor]) -> None:
        (slot,), (grad,) = self.slots, grads
        if grad is None:
            self.flat = _no_rows(slot.param)
        elif not grad.is_sparse:
            raise ReductionError(
                f"expected a sparse gradient of {slot.name!r}, as its module was built with"
                " sparse=True, got a dense one: something else uses the parameter too. Build the"
                " module with sparse=False."
            )
        else:
            # Its values may be the very tensor that backward goes on with below the embedding, and
            # what is kept from before must survive where no rank uses the parameter.
            self.flat = grad.clone()
        self.views = [self.flat]

    def _take(self, result: Tensor) -> None:
        self.flat = result.to(self.flat.dtype)
        self.views = [self.flat]


def _shaped_like(param: Tensor, piece: Tensor) -> Tensor:
    """``piece`` (1-d, ``param.numel()`` long) in the shape of ``param``, and its strides if dense.

    Gradients come in the strides of their parameter, so the copy into the buffer is a plain one.
    """
    strides = torch.empty_like(param, device="meta").stride()
    return piece.as_strided(param.size(), strides)


def _no_rows(param: Tensor) -> Tensor:
    """The sparse gradient of an embedding that no index has met, as autograd would shape it."""
    return torch.sparse_coo_tensor(
        torch.empty(1, 0, dtype=torch.int64, device=param.device),
        torch.empty(0, *param.shape[1:], dtype=param.dtype, device=param.device),
        size=param.shape,
        check_invariants=False,
    )
