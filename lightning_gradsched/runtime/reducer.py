"""Hooks -> buckets: the cycle of one backward. What becomes of full buckets is in launches.py.

[Note: one backward] A cycle opens when the backward of the loss begins and closes in a callback
that autograd runs when all of it has ended, nested backwards included. In between, each parameter's
hook counts its gradient into its bucket; a bucket that is full, and whose turn it is, is filled and
launched. What has not been launched by the end (absent parameters, orders other than planned) is
launched then. So every rank launches every bucket once a cycle, in the schedule's order, whatever
its own graph did.

[Note: absence] The engine says beforehand which gradients of a running backward will come, except
those that a re-entrant checkpoint hides. A member counts as absent before the end only if it has
been seen to come directly (`Origin.DIRECT`) and the engine says that it will not. It is asked only
after a parameter has once been missing: nets that use all of their parameters never pay for it.

[Note: a backward that raised] Autograd drops the final callback of a backward that raises. A cycle
that is open though its callback is gone is therefore one that an exception cut off. Before the next
one begins, its groups that are not launched are sent as NaN: where all ranks were cut off, by
Ctrl-C or by the same error, each wherever it was, they are in step again; and a rank that was not
cannot take the mean of a part for that of all. (Where the ranks negotiate they need not: a round is
given up by all.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from enum import Enum, auto
from itertools import chain

from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.bucket import HOLD, Bucket, Origin, Slot, Tally
from lightning_gradsched.runtime.collectives import AllReduce
from lightning_gradsched.runtime.graph import ready_order, will_run
from lightning_gradsched.runtime.launches import Launches
from lightning_gradsched.runtime.profiler import StepProfiler

# Names in local ready order, in blocks of what comes at once -> the plan and schedule that all
# ranks agreed on. Collective.
Plan = Callable[[Sequence[Sequence[str]]], tuple[GroupPlan, ReductionSchedule]]


class State(Enum):
    IDLE = auto()  # between backwards
    RUNNING = auto()  # from the root hook (or first gradient) of a backward to its final callback
    MUTED = auto()  # inside no_sync: gradients accumulate locally


class Reducer:
    """Averages gradients over the ranks while each backward runs.

    ``after_reduction`` is called after every backward that was reduced. ``launches``: of another
    kind than the usual one.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        network: AllReduce,
        plan: Plan,
        after_reduction: Callable[[], None] = lambda: None,
        launches: Launches | None = None,
    ) -> None:
        self.launches = launches or Launches(network)
        self.profiler: StepProfiler | None = None
        self._plan = plan
        self._after_reduction = after_reduction
        self._unplanned = Tally()
        self._slots: dict[str, Slot] = {}
        self._handles: list[RemovableHandle] = []
        self._n_reduced = 0  # backwards
        self._state = State.IDLE
        self._final_callback: Callable[[], object] = lambda: None  # a weak reference to it
        self._announced = False  # whether the running cycle's root has been seen
        self._certain = False  # whether it is known to be a backward and not an autograd.grad
        # RUNNING and certain, with no profiler: a gradient that comes has only to be counted.
        self._only_counts = False
        self._was_partial = False  # some backward has not reached all parameters
        # What the engine says that this backward will reach; None where it need not be asked.
        self._coming: set[Slot] | None = None
        self.add(params)

    @property
    def buckets(self) -> Sequence[Bucket]:
        """In launch order; empty before the first backward."""
        return self.launches.order

    @property
    def n_reduced(self) -> int:
        """How many backwards have been reduced."""
        return self._n_reduced

    def progress(self) -> str:
        """What it is doing, for other ranks' errors; may be asked by any thread."""
        if self._state is State.RUNNING:
            return f"in backward {self._n_reduced + 1}"
        return f"after {self._n_reduced} backwards, not in one"

    def add(self, params: Mapping[str, Tensor], *, sparse: Container[str] = ()) -> None:
        """Reduce these too, by a new plan, to be made at the next backward.

        ``sparse``: names of those whose gradients are sparse.
        """
        for name, param in params.items():
            self._slots[name] = slot = Slot(name, param, self._unplanned, name in sparse)
            self._handles.append(self._watch(slot))
        self.forget_plan()

    def add_late(
        self, params: Mapping[str, Tensor], *, sparse: Container[str] = (), factor: float = 1.0
    ) -> None:
        """As ``add``, from ``after_reduction``: the backward that has ended is of these too.

        Its gradients of these are reduced now, each by itself, and multiplied by ``factor``.
        """
        self.add(params, sparse=sparse)
        slots = [self._slots[name] for name in params]
        # None of them was ever reduced: whatever they hold came in this backward, or was kept.
        self._unplanned.arrived.update((s, 1) for s in slots if s.param.grad is not None)
        self.launches.reduce_each(slots, factor)
        self.forget_plan()
        self._unplanned.clear()

    def detach(self) -> None:
        """Remove all hooks and let go of the buckets. Gradients keep the values that they have."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget_plan()

    def forget_plan(self) -> None:
        """Have the next backward ask for a plan. Not while a backward that is planned runs."""
        for slot in self._slots.values():
            slot.move_to(self._unplanned)
        self.launches.forget()

    def settle(self) -> None:
        """Wait for what a backward that an exception cut off has left under way."""
        self._close_if_cut_off()

    def mute(self) -> State:
        """Let gradients accumulate locally; give the result to ``resume``."""
        self._close_if_cut_off()
        before, self._state = self._state, State.MUTED
        self._only_counts = False
        return before

    def resume(self, before: State) -> None:
        self._state = before

    @property
    def is_muted(self) -> bool:
        return self._state is State.MUTED

    def begin(self, roots: Iterable[Node], *, certain: bool) -> None:
        """Open a cycle, from a hook that autograd runs in the backward of ``roots``.

        ``certain``: gradients must be reduced even if none comes on this rank; otherwise a backward
        that brings none (``autograd.grad``) is let pass.
        """
        self._close_if_cut_off()
        if self._state is State.IDLE and not self._open(certain=certain):
            return
        if self._state is State.RUNNING and not self._announced:
            self._announce(roots)

    def _watch(self, slot: Slot) -> RemovableHandle:
        def on_ready(_param: Tensor) -> None:
            # What runs for every parameter of every step: the usual case first, with few lookups.
            tally = slot.tally
            arrived = tally.arrived
            if self._only_counts and slot not in arrived and self._final_callback() is not None:
                arrived[slot] = 1
                tally.pending = pending = tally.pending - 1
                if pending <= 0:
                    self._on_full(slot)
            else:
                self._on_unusual(slot)

        handle: RemovableHandle = slot.param.register_post_accumulate_grad_hook(on_ready)
        return handle

    def _on_unusual(self, slot: Slot) -> None:
        """A gradient that is not only to be counted, or the first of its backward."""
        if self._state is State.MUTED:
            self._refuse_if_open(slot)
            slot.tally.kept.add(slot)
            return
        if self._state is State.IDLE or self._final_callback() is None:
            self._refuse_if_open(slot)
            # A backward of which no root was seen yet: so far all must wait for its end.
            self._close_if_cut_off()
            self._open(certain=True)
        tally = slot.tally
        if slot in tally.arrived:
            self._on_repeat(slot)
            return
        tally.arrived[slot] = 1
        if not self._certain:
            self._be_certain()
        self._only_counts = self.profiler is None
        if self.profiler is not None:
            self.profiler.gradient(slot.name)
        tally.pending -= 1
        if tally.pending <= 0:
            self._on_full(slot)

    def _open(self, *, certain: bool) -> bool:
        """False where the engine runs an ``autograd.grad``, which leaves ``.grad`` alone."""
        if self.launches.open_groups is not None:
            self.launches.open_groups.backward_begins()
        self._coming = None
        if self._was_partial or any(b.holds for b in self.buckets) or not self.buckets:
            try:
                self._coming = {slot for slot in self._slots.values() if will_run(slot.node)}
            except RuntimeError:  # the engine's answer inside autograd.grad with respect to leaves
                return False

        def final_callback() -> None:
            self._finish()

        Variable._execution_engine.queue_callback(final_callback)
        self._final_callback = weakref.ref(final_callback)
        self._state = State.RUNNING
        self._announced, self._certain = False, certain
        if self.launches.recorder is not None:
            self.launches.recorder.backward_began()
        if self.profiler is not None:
            self.profiler.backward_began()
        return True

    def _announce(self, roots: Iterable[Node]) -> None:
        """From now on buckets may leave when they are full."""
        if self._coming is not None and not self._coming and not self._certain:
            return  # autograd.grad with respect to inputs
        if not self.buckets:
            self._plan_from_graph(roots)
        self._announced = True
        self._only_counts = False  # the plan may have come with a profiler
        for bucket in self.buckets:
            bucket.pending = HOLD if bucket.holds else self._n_missing(bucket)
        self.launches.announce(certain=self._certain)

    def _be_certain(self) -> None:
        """A gradient has come: this is a backward, which no rank may leave without a word."""
        self._certain = True
        if self._announced:
            self.launches.be_certain()

    def _n_missing(self, bucket: Bucket) -> int:
        """How many members have not come and may still come; see [Note: absence]."""
        if self._coming is None:
            return len(bucket.slots) - len(bucket.arrived)
        return sum(
            slot not in bucket.arrived and (slot in self._coming or slot.origin is Origin.NESTED)
            for slot in bucket.slots
        )

    def _on_repeat(self, slot: Slot) -> None:
        """A gradient that comes again was not final: its group must wait for the end."""
        slot.tally.arrived[slot] += 1
        slot.tally.hold(slot)
        self._refuse_if_late(slot)

    def _on_full(self, slot: Slot) -> None:
        self._refuse_if_late(slot)
        if isinstance(slot.tally, Bucket):
            self.launches.full(slot.tally)

    def _refuse_if_open(self, slot: Slot) -> None:
        """A gradient came on top of one that is under way, and has spoilt it."""
        open_groups = self.launches.open_groups
        if open_groups and open_groups.holds(slot.tally):
            raise ReductionError(
                f"parameter {slot.name!r} got a gradient while {slot.tally} of the backward before"
                " was under way: a backward of an old graph, of which nothing was announced. Call"
                " scheduler.flush() or scheduler.prepare(loss) before it."
            )

    def _refuse_if_late(self, slot: Slot) -> None:
        bucket = slot.tally
        if not isinstance(bucket, Bucket) or not bucket.in_flight:
            return
        bucket.hold(slot)
        raise ReductionError(
            f"parameter {slot.name!r} got a further gradient after {bucket} was reduced without it:"
            " a nested backward (re-entrant checkpointing) reached it in a way that it had not"
            " before. From the next step on the group waits for it; to lose no step, use"
            " torch.utils.checkpoint with use_reentrant=False."
        )

    def _finish(self) -> None:
        """Autograd's final callback; `.grad` holds the mean over ranks when it returns."""
        try:
            is_backward = self._is_backward()
            if is_backward:
                self._reduce_rest()
        except BaseException:
            self._final_callback = lambda: None  # see [Note: a backward that raised]
            self.launches.give_up()  # the others need not wait for the next begin
            raise
        self._close()
        if is_backward:
            self._count()

    def _is_backward(self) -> bool:
        return self._certain or any(tally.arrived for tally in self._tallies())

    def _reduce_rest(self) -> None:
        self._mark_end_of_backward()
        if not self.buckets:
            self._plan_from([slot] for slot in self._unplanned.arrived)
        self.launches.finish()
        self._learn()
        for tally in self._tallies():
            tally.clear()

    def _mark_end_of_backward(self) -> None:
        if self.launches.recorder is not None:
            self.launches.recorder.backward_ended()
        if self.profiler is not None:
            self.profiler.backward_ended()

    def _count(self) -> None:
        """One more backward is reduced, on all ranks: some agreements come every so many."""
        self._n_reduced += 1
        if self.launches.recorder is not None:
            self.launches.recorder.ended()
        self._after_reduction()

    def _learn(self) -> None:
        """Prepare the next cycle's [Note: absence] where this one was not all regular."""
        for bucket in self.buckets:
            if bucket.holds or len(bucket.arrived) < len(bucket.slots):
                self._was_partial |= len(bucket.arrived) < len(bucket.slots)
                bucket.learn(self._coming or ())

    def _close(self) -> None:
        for tally in self._tallies():
            tally.keep()
            tally.pending = HOLD
        self.launches.close()
        self._state = State.IDLE
        self._only_counts = False

    def _close_if_cut_off(self) -> None:
        """See [Note: a backward that raised]."""
        if self._state is State.RUNNING and self._final_callback() is None:
            was_reduced = self.launches.drain(
                is_backward=self._is_backward(), before_waiting=self._mark_end_of_backward
            )
            self._close()
            if was_reduced:
                self._count()

    def _tallies(self) -> Iterable[Tally]:
        return chain([self._unplanned], self.buckets)

    def _plan_from_graph(self, roots: Iterable[Node]) -> None:
        slot_of = {id(slot.param): slot for slot in self._slots.values()}
        walk = ready_order(roots)
        met = [
            [slot_of[id(leaf)] for leaf in block if id(leaf) in slot_of] for block in walk.blocks
        ]
        if not walk.hides:
            for slot in chain.from_iterable(met):
                if slot.origin is Origin.UNSEEN:
                    slot.origin = Origin.DIRECT
        self._plan_from(met)

    def _plan_from(self, met: Iterable[Sequence[Slot]]) -> None:
        """Agree on a plan from the parameters ``met`` in ready order, and lay out its buckets."""
        plan, schedule = self._plan([[slot.name for slot in block] for block in met if block])
        self.launches.follow(plan, schedule, self._slots)
