"""Which groups all ranks have full, agreed while backward runs and with no rank special.

[Note: a cycle] Each rank says which of its groups are full, one bit a group; the AND over the ranks
is what all have, and each rank launches what is new in it, lowest bit first. Only this agreed
result decides, so all ranks launch the same groups in the same order, whatever their graphs did.
A rank enters a cycle when it has something to say: a group that has filled up since the cycle
before, or all of its groups. So a cycle runs at the pace of the rank that has least to say, none
runs between backwards, and a round of n groups takes n cycles at the most: in each, every rank says
more than before or has said all. No cycle can wait for ever, as the end of backward fills the rest.
The price: a group may leave one group's time later than it could, where a rank with
nothing new to say had it already.

[Note: two threads] Backward's thread fills a bucket, hands it over by `offer` and does not touch it
again before `finish` has returned: its gradients were final. The control thread launches it. It is
the only one to use the process group of the gradients while a round is open, so that the order
among ranks is the agreed one. On a GPU the launch waits for the mark that `offer` left behind the
filling, on a stream of its own: backward may have queued much since.

[Note: a round given up] A rank whose backward raised cannot fill the rest. Launching what it has
would hand the others half of a sum, so it says that it gives up, by the lowest bit, and the round
ends for all in the same cycle: no rank launches what came with it. What was launched before is the
same on all ranks and is waited for. The others are told by an error from `finish`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import Any, Protocol

from lightning_gradsched.errors import ReductionError

# The lowest bit of what is said in a cycle, set by every rank that has not given up.
CARRY_ON = 1


class Control(Protocol):
    """What the control thread needs of the network; tests put another rank in its place."""

    def intersect(self, bits: int, n_bits: int, stop: Callable[[], bool]) -> int | None:
        """The bits that all ranks have set, or None once ``stop()``. All ranks call it alike."""
        ...

    def mark(self) -> Any:
        """The work that the device has been given so far."""
        ...

    def after(self, mark: Any) -> AbstractContextManager[None]:
        """Within it, a collective waits on the device for ``mark``, in whichever thread it is."""
        ...

    def close(self) -> None: ...


class Round(Enum):
    NONE = auto()  # from `finish` or `settle` to `open` or the first offer of the next backward
    OPEN = auto()  # from then until all ranks have launched all groups
    GIVING_UP = auto()  # from `give_up` until the others know
    LOST = auto()  # another rank gave up; until this rank's backward has ended


class Negotiation:
    """A thread that agrees with the other ranks, round by round, which groups to launch when.

    A round is one reduced backward: ``offer`` for each group, then ``finish``; all ranks go through
    the same rounds. ``timeout_s``: the longest that a cycle may take.
    """

    def __init__(self, network: Control, timeout_s: float) -> None:
        self._network = network
        self._timeout_s = timeout_s
        self._everything = 0  # the bits of all groups
        self._changed = threading.Condition()  # guards what follows
        self._round = Round.NONE
        # By group, with the mark that its buffer was filled before; kept while a round is open.
        self._launch: dict[int, tuple[Any, Callable[[], None]]] = {}
        self._offered = 0  # bits of the groups that are full here
        self._said = 0  # those that the last cycle was told of
        self._agreed = 0  # those that are launched
        self._fault: BaseException | None = None
        self._closed = False
        self._pid = os.getpid()
        # Daemon: a process that nobody tells to detach must still be able to end.
        self._thread = threading.Thread(target=self._run, name="gradsched-readiness", daemon=True)
        self._thread.start()

    def expect(self, n_groups: int) -> None:
        """Rounds have so many groups from now on. Between rounds only."""
        self._everything = (1 << n_groups) - 1

    def open(self) -> None:
        """A round begins that will be finished or given up, even if it comes to no offer."""
        with self._changed:
            if self._round is Round.NONE:
                self._round = Round.OPEN

    def offer(self, group: int, launch: Callable[[], None]) -> None:
        """``group`` is full here: have the control thread ``launch`` it when it is everywhere."""
        with self._changed:
            if self._round is Round.LOST or self._fault is not None:
                return  # `finish` says so
            self._round = Round.OPEN
            self._launch[group] = self._network.mark(), launch
            self._offered |= 1 << group
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when all groups are launched; all must have been offered.

        Raises:
            ReductionError: another rank gave this backward up, or cannot be reached.
        """
        with self._changed:
            self._await_end()
            lost = self._round is Round.LOST
            self._round = Round.NONE
        if lost:
            raise ReductionError(
                "another rank gave up this backward, so its gradients could not be reduced: an"
                " exception was raised there and caught, see that rank's log. The gradients of this"
                " backward are of no use on any rank; zero_grad() before the next one."
            )

    def give_up(self) -> None:
        """This rank's backward will not end; see [Note: a round given up]. Does not wait."""
        with self._changed:
            if self._round is Round.OPEN:
                self._round = Round.GIVING_UP
                self._changed.notify_all()
            elif self._round is Round.LOST:
                self._round = Round.NONE

    def settle(self) -> None:
        """Return when the others know of a round that was given up; raises as ``finish``."""
        with self._changed:
            self._await_end()

    def close(self) -> None:
        """End the thread. Idempotent; a forked child, which has no such thread, does nothing."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._timeout_s)
            if not self._thread.is_alive():
                self._network.close()

    def _await_end(self) -> None:
        while self._round in (Round.OPEN, Round.GIVING_UP) and self._fault is None:
            # Each cycle notifies, and ends by itself in timeout_s: half of this wait.
            if not self._changed.wait(2 * self._timeout_s):
                raise ReductionError(self._describe_stall())
        if self._fault is not None:
            raise ReductionError(
                f"the ranks could not agree on the groups to reduce: {self._fault}. Another rank"
                " has failed or is slower than stall_timeout_s; see the first error among the"
                " ranks' logs."
            ) from self._fault

    def _describe_stall(self) -> str:
        waiting = list(_groups_of(self._offered & ~self._agreed))
        return (
            f"expected all ranks to agree within {2 * self._timeout_s:g} s, got no answer about"
            f" groups {waiting}, which are full here. A rank stands still: look for one that is"
            " stopped, or raise stall_timeout_s."
        )

    def _run(self) -> None:
        try:
            while (said := self._next_to_say()) is not None:
                n_bits = self._everything.bit_length() + 1
                agreed = self._network.intersect(said, n_bits, lambda: self._closed)
                if agreed is None:
                    return
                self._launch_new(agreed)
        except BaseException as error:  # whatever it is, the thread that waits must be told
            with self._changed:
                self._fault = error
                self._launch.clear()
                self._changed.notify_all()

    def _next_to_say(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_news())
            if self._closed:
                return None
            self._said = self._offered
            return self._offered << 1 | (CARRY_ON if self._round is Round.OPEN else 0)

    def _has_news(self) -> bool:
        if self._round is Round.OPEN:
            return self._offered != self._said or self._offered == self._everything
        return self._round is Round.GIVING_UP

    def _launch_new(self, agreed: int) -> None:
        full_everywhere, carry_on = agreed >> 1, agreed & CARRY_ON
        if carry_on:
            for group in _groups_of(full_everywhere & ~self._agreed):
                mark, launch = self._launch[group]
                with self._network.after(mark):
                    launch()
        with self._changed:
            self._agreed = full_everywhere
            if not carry_on or full_everywhere == self._everything:
                self._end_round(lost=not carry_on and self._round is Round.OPEN)
            self._changed.notify_all()

    def _end_round(self, *, lost: bool) -> None:
        self._round = Round.LOST if lost else Round.NONE
        self._offered = self._said = self._agreed = 0
        self._launch.clear()


def _groups_of(bits: int) -> Iterator[int]:
    """The numbers of the set bits, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
