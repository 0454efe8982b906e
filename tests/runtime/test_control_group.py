"""The AND of readiness bits over real ranks, and the rings by which they go round."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.control_group import cube_rings, wait_unless
from tests.ranks import run_ranks

LIMIT_S = 20.0


def intersections(rank: int, n_ranks: int, n_groups: int) -> list[bool]:
    """In rounds that leave out unlike groups; then with all and with none."""
    control = Collectives(None, torch.device("cpu"), LIMIT_S).control_group()
    everything, ok = (1 << n_groups) - 1, []
    for i in range(3):
        lacking = [1 << (63 * (r + i)) % n_groups for r in range(n_ranks)]
        common = everything
        for bit in lacking:
            common &= ~bit
        ok.append(control.intersect(everything & ~lacking[rank], n_groups, lambda: False) == common)
    for bits in (everything, 0):
        ok.append(control.intersect(bits, n_groups, lambda: False) == bits)
    control.close()
    return ok


# In rings of 4 ranks, 100 groups are reduced and 300 gathered.
@pytest.mark.parametrize("n_groups", [100, 300])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5, 6])
def test_ranks_of_any_number_and_their_bits(n_ranks: int, n_groups: int) -> None:
    assert run_ranks(n_ranks, intersections, n_ranks, n_groups) == [[True] * 5] * n_ranks


@pytest.mark.parametrize("n_ranks", [*range(1, 20), 63, 64, 65, 1000, 1024, 27_600])
def test_every_ranks_bits_reach_every_rank_by_rings_that_all_enter_alike(n_ranks: int) -> None:
    ways = [cube_rings(rank, n_ranks) for rank in range(n_ranks)]
    heard = [1 << rank if n_ranks < 100 else 0 for rank in range(n_ranks)]
    waiting = [list(way) for way in ways]
    # Ring by ring, in any order in which all of a ring's ranks have come to it.
    ready = list(range(n_ranks))
    while ready:
        rank = ready.pop()
        if not waiting[rank] or any(waiting[r][:1] != waiting[rank][:1] for r in waiting[rank][0]):
            continue
        ring = waiting[rank][0]
        common = 0
        for member in ring:
            common |= heard[member]
        for member in ring:
            heard[member] = common
            waiting[member].pop(0)
        ready += ring
    assert not any(waiting), "some ring waits for ever"
    if n_ranks < 100:
        assert heard == [(1 << n_ranks) - 1] * n_ranks
    assert max(map(len, ways)) <= 2 + n_ranks.bit_length() / 3 + 1


class EndsAfterTheWait:
    """A work that ends between the time-out of a wait and the look at whether it has ended."""

    def __init__(self, error: str) -> None:
        self.error = error

    def wait(self, timeout: Any = None) -> None:
        if timeout is not None:
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise RuntimeError(self.error)

    def is_completed(self) -> bool:
        return True


def test_a_work_that_ends_just_after_a_slice_of_waiting_has_not_failed() -> None:
    assert wait_unless(EndsAfterTheWait(""), lambda: False)
    with pytest.raises(RuntimeError, match="connection closed"):
        wait_unless(EndsAfterTheWait("connection closed"), lambda: False)
