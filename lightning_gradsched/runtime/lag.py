"""Gradients of the backward before: each backward gives out what the one before has taken in.

[Note: lag] The reduction of a backward's gradients has the whole next step to itself, and is waited
for at the end of the next backward, which gives them out as `.grad` while its own go under way
(Kurth et al., "Exascale Deep Learning for Climate Analytics", SC18, arXiv 1810.01993: gradient
lag). Each group has two buffers that take turns. What a parameter gets is the mean of the last
backward that reached it on any rank, whichever that was; its first gets zeros.

[Note: set aside] Who does not zero gradients adds them up: over several backwards a step, or over
steps. What has been given out must not be sent again, so it is taken out of `.grad` before a
backward adds to it, and added when that backward has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.bucket import Bucket, Slot
from lightning_gradsched.runtime.collectives import AllReduce, PendingReduction, Work
from lightning_gradsched.runtime.graph import will_run
from lightning_gradsched.runtime.launches import Launches
from lightning_gradsched.runtime.recorder import Recorder
from lightning_gradsched.runtime.signals import Signal

# Begins to sum integers over the ranks; the text is for errors.
BeginSum = Callable[[Iterable[int], str], PendingReduction]

# The number of a backward that torch gives where none runs.
OUTSIDE = -1


@dataclass(eq=False, slots=True)
class Lagged:
    """The other buffer of a group: what its last backward has sent, until the next gives it out."""

    flat: Tensor
    tail: Tensor
    views: list[Tensor]
    work: Work | None = None
    result: Tensor | None = None
    is_waited_for: bool = True
    factor: float = 1.0  # by which the mean is still to be multiplied
    carried: Collection[int] = ()  # members that it did not reach: what they have is older

    def swap(self, bucket: Bucket) -> None:
        for name in ("flat", "tail", "views", "work", "result"):
            ours = getattr(self, name)
            setattr(self, name, getattr(bucket, name))
            setattr(bucket, name, ours)


class LaggedLaunches(Launches):
    """As ``Launches``, but a backward waits for the groups of the one before, see [Note: lag].

    What ranks signal travels in a message of its own, ahead of the groups: it must be heard at the
    end of the backward that it is of. ``begin_sum`` carries it.
    """

    def __init__(self, network: AllReduce, begin_sum: BeginSum) -> None:
        super().__init__(network)
        self._begin_sum = begin_sum
        self._word: PendingReduction | None = None  # a sum a signal, and of ranks that were cut off
        self._is_cut_off = False
        self._lagged: dict[Bucket, Lagged] = {}
        self._held: dict[str, Tensor] = {}  # means that have no buffer: there is no plan for them
        self._given: dict[Slot, Tensor] = {}  # out by the last backward, and still in `.grad`
        # See [Note: set aside]; with the number of the backward before which it was.
        self._aside: dict[Slot, tuple[Tensor, int]] = {}
        self._recorder_before: Recorder | None = None
        self._has_failed = False  # a wait: what is under way can come no more

    @property
    def has_in_flight(self) -> bool:
        under_way = any(not lagged.is_waited_for for lagged in self._lagged.values())
        return bool(self._launched) or under_way

    def follow(
        self, plan: GroupPlan, schedule: ReductionSchedule, slots: Mapping[str, Slot]
    ) -> None:
        super().follow(plan, schedule, slots)
        self._lagged = {bucket: self._second_buffer(bucket) for bucket in self.order}

    @torch.no_grad()
    def forget(self) -> None:
        for bucket in () if self._has_failed else self._lagged:
            self._settle(bucket)
            lagged = self._lagged[bucket]
            names = (slot.name for slot in bucket.slots)
            self._held.update(zip(names, lagged.views, strict=True))
        self._lagged = {}
        super().forget()

    def settle(self) -> None:
        """Wait for what is under way; it is given out when it would have been."""
        for bucket in () if self._has_failed else self._lagged:
            self._settle(bucket)

    def state(self) -> dict[str, Tensor]:
        """The means that the next backward will give out, by parameter; the same on every rank.

        Also after ``forget``, as when its engine is detached.
        """
        self.settle()
        state = dict(self._held)
        for bucket, lagged in self._lagged.items():
            state.update((s.name, v) for s, v in zip(bucket.slots, lagged.views, strict=True))
        return {name: mean.clone() for name, mean in state.items()}

    def restore(self, state: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> None:
        """Have the first backward of ``params`` give out what ``state()`` gave; before it."""
        for name, mean in state.items():
            param = params.get(name)
            if param is not None and param.shape != mean.shape:
                raise GradSchedError(
                    f"gradient_lag: expected the gradient of {name!r} to have shape"
                    f" {tuple(param.shape)}, got {tuple(mean.shape)} out of the checkpoint: it is"
                    " of another model"
                )
            self._held[name] = mean if param is None else mean.to(param.device)

    def backward_begins(self) -> None:
        """From a hook of a backward, before it adds to any `.grad`; see [Note: set aside]."""
        number = torch._C._current_graph_task_id()
        for slot, (_, before) in list(self._aside.items()):
            # Somebody has dropped all that there was.
            if slot.param.grad is None and before not in (number, OUTSIDE):
                del self._aside[slot]
        for slot, gradient in list(self._given.items()):
            if slot.param.grad is not gradient:
                del self._given[slot]
            elif _comes(slot):
                self._set_aside(slot)

    def skips_backward(self) -> None:
        """This rank is about to add nothing to a backward: what is out is no part of it."""
        for slot, gradient in list(self._given.items()):
            if slot.param.grad is gradient:
                self._set_aside(slot)

    def announce(self, *, certain: bool) -> None:
        if self._recorder_before is not None:
            self._recorder_before.next_backward_began()
        super().announce(certain=certain)

    @torch.no_grad()
    def finish(self) -> None:
        """Launch what is left, wait for the backward before, and give out its means."""
        self._launch_rest(void=False)
        self._record_end_of_backward()
        if self.nan_watch is not None and self.nan_watch.is_on():
            for bucket in self.order:
                self._wait(bucket)
                bucket.receive()
            self.nan_watch.look_after(self.order)
        self._given = {}
        for bucket in self._wait_order:
            self._take_turns(bucket)
        self._add_what_was_set_aside()
        self._launched.clear()

    def drain(self, *, is_backward: bool, before_waiting: Callable[[], None]) -> bool:
        """As ``Launches.drain``; what the backward before has sent stays to be given out."""
        self._is_cut_off = True
        try:
            return super().drain(is_backward=is_backward, before_waiting=before_waiting)
        finally:
            self._is_cut_off = False

    def heard(self) -> frozenset[Signal]:
        if self._word is None:
            return frozenset()
        self._has_failed = True
        *sums, n_cut_off = self._word.values()
        self._has_failed = False
        heard = (signal for signal, total in zip(Signal, sums, strict=True) if total > 0)
        return frozenset() if n_cut_off else frozenset(heard)

    def place_of(self, signal: Signal) -> Tensor:
        assert self._word is not None
        return self._word.place(signal)

    def scale(self, factor: float) -> None:
        for lagged in self._lagged.values():
            lagged.factor *= factor

    @torch.no_grad()
    def reduce_each(self, slots: Sequence[Slot], factor: float) -> None:
        """As ``Launches.reduce_each``; the next backward gives the means out."""
        super().reduce_each(slots, factor)
        for slot in slots:
            mean = slot.param.grad
            if mean is not None:
                before = self._held.get(slot.name)
                slot.param.grad = torch.zeros_like(mean) if before is None else before
                self._held[slot.name] = mean
                self._given[slot] = slot.param.grad

    def _lay_out(
        self, number: int, slots: Sequence[Slot], n_signals: int = 0, n_pieces: int = 1
    ) -> Bucket:
        if slots[0].is_sparse:
            raise GradSchedError(
                f"gradient_lag: expected dense gradients, got {slots[0].name!r} of a module with"
                " sparse=True: make it sparse=False, or set gradient_lag=0"
            )
        return super()._lay_out(number, slots, 0, n_pieces)  # signals travel by themselves

    def _second_buffer(self, bucket: Bucket) -> Lagged:
        """Zeros, but for what is held of its members."""
        lagged = Lagged(bucket.flat, bucket.tail, bucket.views)
        bucket.lay_out()
        lagged.swap(bucket)
        for slot, view in zip(bucket.slots, lagged.views, strict=True):
            mean = self._held.pop(slot.name, None)
            if mean is not None:
                view.copy_(mean)
        return lagged

    def _fill(self, bucket: Bucket, *, void: bool = False) -> None:
        for slot in bucket.slots if self._given else ():
            gradient = self._given.get(slot)
            if gradient is not None and slot.param.grad is gradient:
                if slot in bucket.arrived or slot in bucket.kept:
                    raise _added_unawares(slot)
                self._set_aside(slot)
        super()._fill(bucket, void=void)

    def _send(self, bucket: Bucket, piece: int = 0) -> None:
        if not self._launched and self.say is not None:
            said = self.say()
            word = [*(int(signal in said) for signal in Signal), int(self._is_cut_off)]
            self._word = self._begin_sum(word, "all ranks' signals")
        super()._send(bucket, piece)

    def _take_turns(self, bucket: Bucket) -> None:
        """Give out what the backward before has sent, and keep what this one has."""
        lagged = self._lagged[bucket]
        unused: Collection[int] = ()
        if bucket.lacks_members:  # whether anyone used them only this reduction tells
            self._wait(bucket)
            bucket.receive()
            unused = bucket.unused_everywhere()
        lagged.swap(bucket)
        self._complete(bucket, lagged)
        lagged.is_waited_for, lagged.carried = False, unused
        if unused:
            for i in unused:
                lagged.views[i].copy_(bucket.views[i])
        bucket.point_to_views(but=unused)
        self._given.update(
            (slot, view)
            for i, (slot, view) in enumerate(zip(bucket.slots, bucket.views, strict=True))
            if i not in unused
        )

    def _wait(self, bucket: Bucket) -> None:
        self._has_failed = True
        super()._wait(bucket)
        self._has_failed = False

    def _settle(self, bucket: Bucket) -> None:
        lagged = self._lagged[bucket]
        lagged.swap(bucket)
        try:
            self._complete(bucket, lagged)
        finally:
            lagged.swap(bucket)

    @torch.no_grad()
    def _complete(self, bucket: Bucket, lagged: Lagged) -> None:
        """Have the buffer of ``lagged``, which ``bucket`` has now, hold the mean."""
        if not lagged.is_waited_for:
            self._wait(bucket)
            bucket.receive()
            lagged.is_waited_for = True
        if lagged.factor != 1.0:
            new = [view for i, view in enumerate(bucket.views) if i not in lagged.carried]
            torch._foreach_mul_(new, lagged.factor)
            lagged.factor = 1.0

    def _set_aside(self, slot: Slot) -> None:
        gradient = self._given.pop(slot).clone()
        self._aside[slot] = gradient, torch._C._current_graph_task_id()
        slot.param.grad = None

    def _add_what_was_set_aside(self) -> None:
        for slot, (gradient, _) in self._aside.items():
            given = slot.param.grad
            slot.param.grad = gradient if given is None else given.add_(gradient)
            self._given[slot] = slot.param.grad
        self._aside.clear()

    def _record_end_of_backward(self) -> None:
        before, self._recorder_before = self._recorder_before, self.recorder
        if before is not None:
            before.next_backward_ended()
        if self.recorder is not None:
            self.recorder.lags()


def check_optimizers(optimizers: Sequence[Optimizer], scaler: object = None) -> None:
    """Raise ``GradSchedError`` for what cannot be right a backward later."""
    if len(optimizers) > 1:
        raise GradSchedError(
            f"gradient_lag: expected one optimizer, got {len(optimizers)}: what a backward gives"
            " out belongs to the backward before, which may be another optimizer's. Put all"
            " parameters into one, or set gradient_lag=0"
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise GradSchedError(
            "gradient_lag: expected an optimizer that takes one gradient a step, got LBFGS, which"
            " searches along it: choose another, or set gradient_lag=0"
        )
    if scaler is not None:
        raise GradSchedError(
            "gradient_lag: expected no loss scaling, as gradients would be divided by the scale of"
            " another step, got precision='16-mixed': use 'bf16-mixed', or set gradient_lag=0"
        )


def _comes(slot: Slot) -> bool:
    """Whether the running backward adds to the gradient of ``slot``, as far as can be told."""
    try:
        return will_run(slot.node)
    except RuntimeError:  # the engine's answer inside autograd.grad with respect to leaves
        return False


def _added_unawares(slot: Slot) -> ReductionError:
    return ReductionError(
        f"gradient_lag: parameter {slot.name!r} got a gradient on top of the one that the backward"
        " before has given out, by a backward of which nothing was announced, or in a re-entrant"
        " checkpoint. Call scheduler.prepare(loss) before it, or optimizer.zero_grad(), which sets"
        " gradients to None."
    )
