"""Hooks -> buckets -> schedule -> collectives.

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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto

from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.bucket import HOLD, Bucket, Origin, Slot, Tally
from lightning_gradsched.runtime.collectives import AllReduce
from lightning_gradsched.runtime.graph import backward_id, ready_order, will_run
from lightning_gradsched.runtime.recorder import Recorder

# Names in local ready order -> the plan and schedule that all ranks agreed on. Collective.
Plan = Callable[[Sequence[str]], tuple[GroupPlan, ReductionSchedule]]


class State(Enum):
    IDLE = auto()  # between backwards
    RUNNING = auto()  # from the root hook of a backward to its final callback
    MUTED = auto()  # inside no_sync: gradients accumulate locally


class Reducer:
    """Averages the gradients of ``params`` over the ranks while each backward runs."""

    def __init__(self, params: Mapping[str, Tensor], network: AllReduce, plan: Plan) -> None:
        self._network = network
        self._plan = plan
        self._unplanned = Tally()
        self._slots = {name: Slot(name, param, self._unplanned) for name, param in params.items()}
        self._slot_of = {id(slot.param): slot for slot in self._slots.values()}
        self._handles = [self._watch(slot) for slot in self._slots.values()]
        self._state = State.IDLE
        self._buckets: list[Bucket] = []  # by group number
        self._launch_order: list[Bucket] = []
        self._wait_order: list[Bucket] = []
        self._launched = 0  # how many of _launch_order
        self._was_partial = False  # some backward has not reached all parameters
        # What the engine says that this backward will reach; None where it need not be asked.
        self._coming: set[Slot] | None = None
        self._certain = False  # whether it is known to be a backward and not an autograd.grad
        self.recorder: Recorder | None = None
        self.on_finish: Callable[[], None] = lambda: None

    @property
    def buckets(self) -> Sequence[Bucket]:
        """In launch order; empty before the first backward."""
        return self._launch_order

    def detach(self) -> None:
        """Remove all hooks. Gradients keep the values that they have."""
        for handle in self._handles:
            handle.remove()

    def mute(self) -> None:
        self._abandon_stale()
        self._state = State.MUTED

    def unmute(self) -> None:
        self._state = State.IDLE

    def begin(self, roots: Iterable[Node], *, certain: bool) -> None:
        """Open a cycle, from a hook that autograd runs first in the backward of ``roots``.

        ``certain``: gradients must be reduced even if none comes on this rank; otherwise a backward
        that brings none (``autograd.grad``) is let pass.
        """
        if self._state is not State.IDLE:
            return
        if not self._buckets:
            self._plan_from_graph(roots)
        self._certain = certain
        self._open()
        for bucket in self._launch_order:
            bucket.open(HOLD if bucket.holds else self._expected(bucket))
        if self._coming is not None:
            self._launch_full()

    def abandon_if_stale(self) -> None:
        """Forget a cycle that an exception cut off. Called outside of any backward only."""
        if backward_id() == -1:
            self._abandon_stale()

    def _watch(self, slot: Slot) -> RemovableHandle:
        def on_ready(_param: Tensor) -> None:
            tally = slot.tally
            tally.fired.append(slot)
            if self._state is State.RUNNING:
                tally.pending -= 1
                if tally.pending <= 0:
                    self._on_full(slot)
            elif self._state is State.IDLE:
                self._begin_unannounced()

        handle: RemovableHandle = slot.param.register_post_accumulate_grad_hook(on_ready)
        return handle

    def _begin_unannounced(self) -> None:
        """A backward of which no root was seen: nothing is known, so all waits for its end."""
        self._certain = True
        self._open()
        for bucket in self._launch_order:
            bucket.open(HOLD)

    def _open(self) -> None:
        Variable._execution_engine.queue_callback(self._finish)
        self._state = State.RUNNING
        self._launched = 0
        self._coming = None
        if self._was_partial or any(bucket.holds for bucket in self._launch_order):
            self._coming = {slot for slot in self._slots.values() if will_run(slot.node)}
        if self.recorder is not None:
            self.recorder.backward_began()

    def _expected(self, bucket: Bucket) -> int:
        if self._coming is None:
            return len(bucket.slots)
        return sum(slot in self._coming or slot.origin is Origin.NESTED for slot in bucket.slots)

    def _on_full(self, slot: Slot) -> None:
        bucket = slot.tally
        assert isinstance(bucket, Bucket)
        if bucket.work is not None:
            raise ReductionError(
                f"parameter {slot.name!r} got a further gradient after {bucket} was reduced without"
                " it: a nested backward (re-entrant checkpointing) reached it in a way that it had"
                " not before. Use torch.utils.checkpoint with use_reentrant=False."
            )
        if self.recorder is not None:
            self.recorder.ready(bucket.number)
        self._launch_full()

    def _launch_full(self) -> None:
        while self._launched < len(self._launch_order):
            bucket = self._launch_order[self._launched]
            if bucket.pending > 0:
                return
            self._launch(bucket)

    def _launch(self, bucket: Bucket) -> None:
        if self.recorder is not None:
            self.recorder.turn_came(bucket.number)
        bucket.fill(1.0 / self._network.world_size)
        bucket.work = self._network.all_reduce(bucket.flat)
        self._launched += 1
        if self.recorder is not None:
            self.recorder.launched(bucket.number, bucket.work)

    def _finish(self) -> None:
        """Autograd's final callback; `.grad` holds the mean over ranks when it returns."""
        try:
            if self._certain or self._any_arrived():
                self._reduce_rest()
        finally:
            self._rest()

    def _any_arrived(self) -> bool:
        return bool(self._unplanned.fired) or any(b.n_arrived for b in self._launch_order)

    def _reduce_rest(self) -> None:
        if self.recorder is not None:
            self.recorder.backward_ended()
        if not self._buckets:
            self._plan_from(self._unplanned.fired)
        for bucket in self._launch_order[self._launched :]:
            self._launch(bucket)
        for bucket in self._wait_order:
            self._wait(bucket)
            bucket.publish()
        self._learn()
        if self.recorder is not None:
            self.recorder.ended()
        self.on_finish()

    def _wait(self, bucket: Bucket) -> None:
        assert bucket.work is not None
        try:
            bucket.work.wait()
        except RuntimeError as error:
            raise ReductionError(
                f"the reduction of {bucket} did not finish: {error}. Another rank has failed or is"
                " slower than stall_timeout_s; see the first error among the ranks' logs."
            ) from error

    def _learn(self) -> None:
        """Prepare the next cycle's [Note: absence] where this one was not all regular."""
        for bucket in self._launch_order:
            if bucket.holds or bucket.n_arrived != len(bucket.slots):
                self._was_partial |= bucket.n_arrived < len(bucket.slots)
                bucket.learn(self._coming or ())

    def _rest(self) -> None:
        self._unplanned.fired.clear()
        for bucket in self._launch_order:
            bucket.reset()
        self._state = State.IDLE

    def _abandon_stale(self) -> None:
        if self._state is not State.RUNNING:
            return
        for bucket in self._launch_order[: self._launched]:
            self._wait(bucket)
        self._rest()

    def _plan_from_graph(self, roots: Iterable[Node]) -> None:
        met = [self._slot_of[id(leaf)] for leaf in ready_order(roots) if id(leaf) in self._slot_of]
        for slot in met:
            slot.origin = Origin.DIRECT
        self._plan_from(met)

    def _plan_from(self, met: Iterable[Slot]) -> None:
        """Agree on a plan from the parameters ``met`` in ready order, and lay out its buckets."""
        plan, schedule = self._plan(list(dict.fromkeys(slot.name for slot in met)))
        self._buckets = [
            Bucket(number=number, slots=[self._slots[name] for name in names])
            for number, names in enumerate(plan.groups)
        ]
        self._launch_order = [self._buckets[group] for group in schedule.launches]
        self._wait_order = [self._buckets[group] for group in schedule.waits]
        for slot in self._unplanned.fired:
            slot.tally.fired.append(slot)
