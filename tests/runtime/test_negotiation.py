"""The control thread of the negotiated schedule, with a test for the other rank."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.readiness import CARRY_ON, Negotiation

LIMIT_S = 20.0


class OtherRank:
    """The network's other end: says, cycle by cycle, what the test lets it say."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self._says: list[int | BaseException] = []
        self._changed = threading.Condition()

    def say(self, *groups: int, carry_on: bool = True) -> None:
        self._add(sum(2 << group for group in groups) | (CARRY_ON if carry_on else 0))

    def fail(self, error: BaseException) -> None:
        self._add(error)

    def _add(self, said: int | BaseException) -> None:
        with self._changed:
            self._says.append(said)
            self._changed.notify_all()

    def intersect(self, bits: int, n_bits: int, stop: Callable[[], bool]) -> int | None:
        assert bits.bit_length() <= n_bits
        self.heard.append(bits >> 1)
        with self._changed:
            while not self._says:
                if stop():
                    return None
                self._changed.wait(0.05)
            said = self._says.pop(0)
        if isinstance(said, BaseException):
            raise said
        return bits & said

    def mark(self) -> str:
        return "mark"

    @contextmanager
    def after(self, mark: str) -> Iterator[None]:
        assert mark == "mark"
        yield

    def close(self) -> None:
        self.heard.append(-1)


@pytest.fixture
def other() -> OtherRank:
    return OtherRank()


@pytest.fixture
def negotiation(other: OtherRank) -> Iterator[Negotiation]:
    negotiation = Negotiation(other, timeout_s=LIMIT_S)
    negotiation.expect(3)
    yield negotiation
    negotiation.close()
    assert not any(thread.name == "gradsched-readiness" for thread in threading.enumerate())


def offer(negotiation: Negotiation, *groups: int) -> tuple[list[int], dict[int, threading.Event]]:
    """What is launched, in order, and for each group an event that it has been."""
    launched: list[int] = []
    events = {group: threading.Event() for group in groups}

    def launch(group: int) -> None:
        launched.append(group)
        events[group].set()

    for group in groups:
        negotiation.offer(group, lambda group=group: launch(group))
    return launched, events


def test_a_group_leaves_when_all_ranks_have_it_and_not_before(
    negotiation: Negotiation, other: OtherRank
) -> None:
    other.say(1)
    launched, _ = offer(negotiation, 2, 1, 0)
    other.say(1, 2)
    other.say(0, 1, 2)
    negotiation.finish()
    assert sorted(launched) == [0, 1, 2]
    assert launched[-1] == 0, "the other rank had it last"


def test_groups_of_one_cycle_leave_in_bit_order(negotiation: Negotiation, other: OtherRank) -> None:
    other.say()  # a cycle in which the first offer finds nothing
    launched, _ = offer(negotiation, 2, 0, 1)
    other.say(0, 1, 2)
    other.say(0, 1, 2)
    negotiation.finish()
    assert launched == [0, 1, 2]


def test_no_cycle_runs_without_news_nor_between_rounds(
    negotiation: Negotiation, other: OtherRank
) -> None:
    for _ in range(2):
        other.heard.clear()
        _, events = offer(negotiation, 1)
        other.say(1)
        assert events[1].wait(LIMIT_S)
        assert other.heard == [0b010], "nothing new to say: no cycle"
        offer(negotiation, 0, 2)
        for _ in range(2):
            other.say(0, 1, 2)
        negotiation.finish()
        assert len(other.heard) <= 3, "at most as many cycles as groups"
        assert other.heard[-1] == 0b111
        # What the test let the other rank say and nobody asked for.
        other._says.clear()


def test_a_fault_of_the_network_reaches_the_thread_that_waits(
    negotiation: Negotiation, other: OtherRank
) -> None:
    launched, _ = offer(negotiation, 0, 1, 2)
    other.fail(RuntimeError("connection closed by peer"))
    for _ in range(2):  # and every later one: the ranks are no more in step
        with pytest.raises(ReductionError, match=r"connection closed by peer.*stall_timeout_s"):
            negotiation.finish()
    assert launched == []


def test_a_launch_that_raises_reaches_the_thread_that_waits(
    negotiation: Negotiation, other: OtherRank
) -> None:
    def launch() -> None:
        raise ValueError("no such buffer")

    negotiation.offer(0, launch)
    other.say(0)
    with pytest.raises(ReductionError, match="no such buffer"):
        negotiation.finish()


def test_a_round_that_another_rank_gave_up_is_an_error_and_the_next_is_clean(
    negotiation: Negotiation, other: OtherRank
) -> None:
    launched, _ = offer(negotiation, 0, 1, 2)
    other.say(0, 1, 2, carry_on=False)
    with pytest.raises(ReductionError, match=r"another rank gave up.*zero_grad"):
        negotiation.finish()
    assert launched == [], "not even what that rank had"
    launched, _ = offer(negotiation, 0, 1, 2)
    for _ in range(3):
        other.say(0, 1, 2)
    negotiation.finish()
    assert launched == [0, 1, 2]


def test_giving_up_tells_the_others_and_settles(negotiation: Negotiation, other: OtherRank) -> None:
    other.say(0)
    launched, events = offer(negotiation, 0)
    assert events[0].wait(LIMIT_S)
    negotiation.give_up()
    other.say(0, 1)
    negotiation.settle()
    assert launched == [0]
    negotiation.give_up()  # no round: nothing to give up
    negotiation.settle()
    negotiation.finish()


def test_closing_ends_a_thread_that_waits_for_another_rank(
    negotiation: Negotiation, other: OtherRank
) -> None:
    offer(negotiation, 0)
    negotiation.close()
    negotiation.close()
    assert not negotiation._thread.is_alive()
