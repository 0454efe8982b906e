"""A rank is lost: the others end with an error that names it, and what they waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.jobs import Ended, run_forked
from tests.ranks import names_silent

STALL_S = 10.0
GROUP = "group 0 (1.bias, 1.weight, 0.bias and 1 more)"


def survivors(ranks: list[Ended], lost: int) -> list[Ended]:
    return [ended for rank, ended in enumerate(ranks) if rank != lost]


@pytest.mark.parametrize(("fault", "lost"), [("kill", 2), ("kill_in_backward", 1)])
def test_a_rank_that_dies_is_named_with_the_group(fault: str, lost: int, tmp_path: Path) -> None:
    for ended in survivors(run_forked(3, tmp_path, fault, lost, STALL_S), lost):
        assert ended.exit_code == 1, ended
        assert "errors.ReductionError: rank" in ended.last_error
        assert f"for {GROUP} and gives up: " in ended.last_error
        assert names_silent(lost, ended.last_error), ended


def test_a_rank_that_is_stopped_is_first_warned_of(tmp_path: Path) -> None:
    for ended in survivors(run_forked(3, tmp_path, "stop", 2, STALL_S), 2):
        assert ended.exit_code == 1, ended
        warnings, _, _ = ended.said.partition("Traceback")
        _, words, found = warnings.partition(
            f"s for {GROUP}; it gives up after stall_timeout_s=10."
        )
        assert words, ended
        assert names_silent(2, found.splitlines()[0]), ended
        assert (
            f"for {GROUP} and gives up: it did not finish in time for stall_timeout_s=10"
            in ended.last_error
        )
        assert names_silent(2, ended.last_error), ended


def test_a_rank_that_only_is_late_is_said_to_be_alive(tmp_path: Path) -> None:
    for ended in survivors(run_forked(3, tmp_path, "sleep", 1, STALL_S), 1):
        assert ended.exit_code == 1, ended
        assert "Rank 1 is alive but has not come so far: after 3 backwards" in ended.last_error
        assert not names_silent(1, ended.last_error), ended


@pytest.mark.slow
def test_a_rank_that_never_comes_is_told_of_when_the_group_is_formed(tmp_path: Path) -> None:
    for ended in survivors(run_forked(2, tmp_path, "absent", 1, STALL_S), 1):
        assert ended.exit_code == 1, ended
        assert "for the engine's process group; it gives up" in ended.said
        assert "for the engine's process group and gives up: " in ended.last_error
        assert "Rank 1 does not have a GradientScheduler yet." in ended.last_error


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_where_the_rank_with_the_store_is_lost_it_is_the_suspect(
    fault: str, tmp_path: Path
) -> None:
    for ended in survivors(run_forked(3, tmp_path, fault, 0, STALL_S), 0):
        assert ended.exit_code == 1, ended
        assert f"for {GROUP} and gives up: " in ended.last_error
        assert "which rank 0 or its launcher hosts, does not answer" in ended.last_error
        if fault == "stop":
            assert f"s for {GROUP}; it gives up" in ended.said[: ended.said.index("Traceback")]
