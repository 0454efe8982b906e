"""The buckets of a plan on their way: whose turn it is, what is under way, when all have come.

[Note: whose turn] By a static schedule a full bucket's turn comes when those before it have been
launched. Where the ranks negotiate, a full bucket is filled at once and handed over; the control
thread launches it when all ranks have it (see runtime/readiness.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.runtime.anomaly import NanWatch
from lightning_gradsched.runtime.bucket import Bucket, Slot, SparseBucket
from lightning_gradsched.runtime.collectives import AllReduce, Work
from lightning_gradsched.runtime.fill_order import FillOrderWatch
from lightning_gradsched.runtime.open_groups import OpenGroups
from lightning_gradsched.runtime.readiness import Negotiation
from lightning_gradsched.runtime.recorder import Recorder
from lightning_gradsched.runtime.scatter import ScatteredBucket, ScatterTransport, Stage
from lightning_gradsched.runtime.signals import N_SIGNALS, Signal
from lightning_gradsched.runtime.transport import AllReduceTransport, Transport, Works


class Launches:
    """Launches every bucket of the plan once a backward, and waits for them at its end.

    Attributes:
        order: in launch order; empty while there is no plan.
        open_groups: where the buckets go that the next forward waits for; where None, the end of
            backward waits for all.
        transport: what makes a mean of a bucket.
        wait: how to wait for a work; its bucket is for errors.
        scatter: sends the groups that travel in halves; None: there are no such groups.
        say: what this rank signals in the backward that runs; see runtime/signals.py. None: nothing
            is signalled, and no room is made for it.
    """

    def __init__(self, network: AllReduce) -> None:
        self.order: Sequence[Bucket] = ()
        self.open_groups: OpenGroups | None = None
        self.transport: Transport = AllReduceTransport(network)
        self.wait: Callable[[Work, Bucket], object] = lambda work, _bucket: work.wait()
        self.say: Callable[[], Collection[Signal]] | None = None
        self.recorder: Recorder | None = None
        self.nan_watch: NanWatch | None = None
        self.fill_order: FillOrderWatch | None = None
        self.scatter: ScatterTransport | None = None
        self._negotiation: Negotiation | None = None
        self._turns: dict[Bucket, int] = {}  # their places in `order`
        self._sequence: Sequence[Bucket] = ()  # of launches: each once for each of its pieces
        self._wait_order: Sequence[Bucket] = ()
        self._left_open: Sequence[Bucket] = ()
        # What travels in halves, in the order of launches and in that of the second halves.
        self._sums: Sequence[ScatteredBucket] = ()
        self._gathers: Sequence[ScatteredBucket] = ()
        self._teller: Bucket | None = None  # carries the signals
        # The part of the sequence that is under way, until it has been waited for.
        self._launched: list[Bucket] = []

    @property
    def has_in_flight(self) -> bool:
        """Whether groups have been launched and not been waited for."""
        is_open = self.open_groups is not None and bool(self.open_groups)
        return bool(self._launched) or is_open

    def follow(
        self, plan: GroupPlan, schedule: ReductionSchedule, slots: Mapping[str, Slot]
    ) -> None:
        """Lay out the buckets of ``plan``, which move ``slots`` (by name) into them."""
        halves: dict[int, ScatteredBucket] = {}
        buckets: list[Bucket] = []
        for number, names in enumerate(plan.groups):
            members = [slots[name] for name in names]
            if self.scatter is not None and number in schedule.gathers:
                halves[number] = self.scatter.lay_out(number, members, plan.owners_of(number))
                buckets.append(halves[number])
            else:
                n_signals = N_SIGNALS if self.say and number == schedule.teller else 0
                buckets.append(self._lay_out(number, members, n_signals, plan.n_pieces(number)))
        self.order = [buckets[group] for group in schedule.order]
        self._teller = buckets[schedule.teller] if buckets else None
        self._turns = {bucket: turn for turn, bucket in enumerate(self.order)}
        self._sequence = list(_sequence([buckets[group] for group in schedule.launches]))
        self._wait_order = [buckets[group] for group in schedule.waits]
        self._left_open = [buckets[group] for group in schedule.left_open]
        self._sums = [halves[group] for group in schedule.order if group in halves]
        self._gathers = [halves[group] for group in schedule.gathers if group in halves]
        if self._negotiation is not None:
            self._negotiation.expect(len(buckets))

    def forget(self) -> None:
        """There is no plan any more. Not while a backward that is planned runs."""
        if self.open_groups is not None:
            self.open_groups.flush()
        self.order, self._sequence, self._turns, self._teller = (), (), {}, None
        self._wait_order, self._left_open, self._sums, self._gathers = (), (), (), ()

    def negotiate(self, negotiation: Negotiation) -> None:
        """Launch what all ranks have, from the next backward on, and no more in a fixed order."""
        self._negotiation = negotiation
        negotiation.expect(len(self.order))

    def announce(self, *, certain: bool) -> None:
        """From now on buckets may leave when they are full; some are, where nothing is to come."""
        if self._negotiation is None:
            self._launch_full()
            return
        if certain:
            self._negotiation.open()
        for bucket in self.order:
            if bucket.pending <= 0:
                self._offer(self._negotiation, bucket)

    def be_certain(self) -> None:
        """The backward that was announced is one that no rank may leave without a word."""
        if self._negotiation is not None:
            self._negotiation.open()

    def full(self, bucket: Bucket) -> None:
        """``bucket`` has all of its gradients."""
        if self.recorder is not None:
            self.recorder.ready(bucket.number)
        if self._negotiation is None:
            self._launch_full()
            if self.open_groups is not None and not bucket.in_flight:
                # Its turn may come with that of many others, at the end of backward, where nothing
                # hides the copies; they are all that `fill` does only once.
                bucket.fill()
        else:
            self._offer(self._negotiation, bucket)
        if self.fill_order is not None:
            self.fill_order.filled(bucket.number, waits=not bucket.in_flight)

    def finish(self) -> None:
        """Launch what is left, and wait for what the schedule leaves to no forward.

        Of what has been waited for, ``.grad`` are the means then; of the rest when they are looked
        at (see runtime/open_groups.py).
        """
        if self._negotiation is None:
            self._launch_rest(void=False)
        else:
            for bucket in self.order:
                if not bucket.in_flight:
                    self._offer(self._negotiation, bucket)
            self._negotiation.finish()
        for bucket in self._wait_order:
            self._wait(bucket)
            bucket.publish()
        self._begin_second_halves()
        if self._left_open:
            self._leave_open()
        elif self.nan_watch is not None:
            self.nan_watch.look_after(self.order)
        self._launched.clear()

    def _leave_open(self) -> None:
        """Leave to the next forward what can be; which is this rank's own affair."""
        watches = self.nan_watch is not None and self.nan_watch.is_on()
        for bucket in self._left_open:
            if self.open_groups is not None and not watches and self.open_groups.takes(bucket):
                self.open_groups.leave(bucket, self.recorder)
            else:
                self._wait(bucket)
                bucket.publish()
        if self.nan_watch is not None and watches:
            self.nan_watch.look_after(self.order)

    def _begin_second_halves(self) -> None:
        """See [Note: halves]."""
        if self.scatter is None or not self._gathers:
            return
        for bucket in self._sums:
            if bucket.stage is Stage.SUMS:
                self._wait(bucket)
                bucket.sum_parts()
        for bucket, work in self.scatter.send_means(self._gathers):
            if self.recorder is not None:
                self.recorder.second_half(bucket.number, work)

    def drain(self, *, is_backward: bool, before_waiting: Callable[[], None]) -> bool:
        """Be in step with the other ranks after a backward that raised: send NaN for the rest.

        ``is_backward``: the others take it for one, too. Whether all groups have been sent: then
        the ranks that were not cut off count this backward. ``before_waiting`` is called if so.
        """
        if self._negotiation is not None:
            self._negotiation.give_up()
            self._negotiation.settle()
        elif is_backward:
            self._launch_rest(void=True)
        was_reduced = 0 < len(self._launched) == len(self._sequence)
        if was_reduced:
            before_waiting()
            self._begin_second_halves()
        for bucket in dict.fromkeys(self._launched):
            self._wait(bucket)
        # Not before: what is forgotten here would be sent again if a wait is cut off too.
        self._launched.clear()
        return was_reduced

    def give_up(self) -> None:
        """Where ranks negotiate, end a round that is open: no more of it will be offered."""
        if self._negotiation is not None:
            self._negotiation.give_up()

    def close(self) -> None:
        """The backward has ended: each bucket may be launched again."""
        for bucket in self.order:
            bucket.in_flight = False
        self.give_up()  # a round that was opened and came to nothing

    def place_of(self, signal: Signal) -> Tensor:
        """Its sum over the ranks, [1], which the host need not know yet; there must be a plan."""
        assert self._teller is not None
        return self._teller.place_of(signal)

    def heard(self) -> frozenset[Signal]:
        """What some rank has signalled in the backward that was reduced last; alike on all.

        On a GPU it waits for that reduction.
        """
        return self._teller.signals() if self._teller and self.say else frozenset()

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply what has just been reduced."""
        if self.open_groups is not None:
            self.open_groups.flush()
        for bucket in self.order:
            bucket.flat.mul_(factor)

    def reduce_each(self, slots: Sequence[Slot], factor: float) -> None:
        """Reduce each of ``slots`` by itself, times ``factor``, between two backwards."""
        buckets = [self._lay_out(number, [slot]) for number, slot in enumerate(slots)]
        for bucket in buckets:
            self._fill(bucket)
            bucket.work = self.transport.send(bucket, is_last=bucket is buckets[-1])
        for bucket in buckets:
            self._wait(bucket)
            bucket.publish()
            with torch.no_grad():
                bucket.flat.mul_(factor)
        if self.nan_watch is not None:
            self.nan_watch.look_after(buckets)

    def _lay_out(
        self, number: int, slots: Sequence[Slot], n_signals: int = 0, n_pieces: int = 1
    ) -> Bucket:
        if slots[0].is_sparse:
            return SparseBucket(number=number, slots=slots, n_signals=n_signals)
        return Bucket(
            number=number,
            slots=slots,
            counts_apart=self.transport.counts_apart,
            n_signals=n_signals,
            n_pieces=n_pieces,
        )

    def _launch_full(self) -> None:
        while len(self._launched) < len(self._sequence):
            bucket = self._sequence[len(self._launched)]
            if bucket.pending > 0:
                return
            self._launch(bucket)

    def _launch_rest(self, *, void: bool) -> None:
        for bucket in self._sequence[len(self._launched) :]:
            self._launch(bucket, void=void)

    def _launch(self, bucket: Bucket, *, void: bool = False) -> None:
        if bucket.n_pieces > 1 and bucket in self._launched:
            self._launch_piece(bucket, self._launched.count(bucket), void=void)
            return
        if self.recorder is not None:
            self.recorder.turn_came(bucket.number)
        self._fill(bucket, void=void)
        self._send(bucket)

    def _launch_piece(self, bucket: Bucket, piece: int, *, void: bool) -> None:
        """One after the first."""
        if void:
            bucket.void(piece)
        before = bucket.work
        self._send(bucket, piece)
        assert before is not None
        bucket.work = Works([before, bucket.work])

    def _offer(self, negotiation: Negotiation, bucket: Bucket) -> None:
        """From here on the bucket is the control thread's; see [Note: two threads]."""
        self._fill(bucket)
        negotiation.offer(self._turns[bucket], partial(self._launch_agreed, bucket))

    def _launch_agreed(self, bucket: Bucket) -> None:
        """In the control thread."""
        if self.recorder is not None:
            self.recorder.turn_came(bucket.number)
        self._send(bucket)

    def _fill(self, bucket: Bucket, *, void: bool = False) -> None:
        bucket.fill()
        if bucket.n_signals and self.say is not None:
            bucket.say(self.say())
        if void:
            bucket.void()
        if self.nan_watch is not None:
            self.nan_watch.look_before(bucket)
        bucket.in_flight = True

    def _send(self, bucket: Bucket, piece: int = 0) -> None:
        is_last = len(self._launched) + 1 == len(self._sequence)
        bucket.work = self.transport.send(bucket, is_last=is_last, piece=piece)
        self._launched.append(bucket)
        if self.recorder is not None:
            self.recorder.launched(bucket.number, bucket.work)

    def _wait(self, bucket: Bucket) -> None:
        assert bucket.work is not None
        self.wait(bucket.work, bucket)


def _sequence(launches: Iterable[Bucket]) -> Iterator[Bucket]:
    """``launches``; what cannot travel in pieces travels whole, with the first."""
    seen: set[Bucket] = set()
    for bucket in launches:
        if bucket.n_pieces > 1 or bucket not in seen:
            yield bucket
        seen.add(bucket)
