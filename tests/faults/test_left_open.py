"""A rank is lost while something is under way past the end of a step: in each mode that has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.jobs import PAST, Ended, start_forked
from tests.ranks import names_silent

N_RANKS, LOST, STALL_S = 3, 1, 10.0


class Case(NamedTuple):
    mode: str
    where: str  # the fault strikes: others have all of this rank but what comes then
    waited_for: str  # a pattern
    is_past: bool = True  # the others wait after the step's end, and not in its backward


CASES = {
    "a group": Case("overlap_forward", "in_backward", r"group 3 \(0\.weight\)"),
    "sums": Case("scatter_gradients", "in_backward", r"the sums of group 3 \(0\.weight\)", False),
    "means": Case(
        "scatter_gradients", "before_means", r"the means of group \d \([01]\.\w+\) from rank \d"
    ),
    "a lagged group": Case("gradient_lag", "in_backward", r"group 3 \(0\.weight\)"),
    "weights": Case(
        "shard_optimizer", "in_step", r"the weights that rank \d has updated \([01]\.\w+\)"
    ),
}
REASONS = {
    "sleep": "Rank 1 is alive but has not come so far",
    "raise": "Rank 1 has ended: its process ended after ZeroDivisionError: no such luck",
}


def survivors(fault: str, folder: Path) -> dict[str, list[Ended]]:
    """Of a job for each case, all at once: most of their time they wait."""
    jobs = {}
    for number, (name, case) in enumerate(CASES.items()):
        (of_case := folder / str(number)).mkdir()
        job = f"{fault}_{case.where}", LOST, STALL_S, case.mode
        jobs[name] = start_forked(N_RANKS, of_case, *job)
    ended = {name: job.ended() for name, job in jobs.items()}
    return {name: [*ranks[:LOST], *ranks[LOST + 1 :]] for name, ranks in ended.items()}


@pytest.mark.parametrize(
    "fault",
    [
        "kill",
        "sleep",
        pytest.param("stop", marks=pytest.mark.slow),
        pytest.param("raise", marks=pytest.mark.slow),
    ],
)
def test_the_others_say_what_they_waited_for_and_for_whom(fault: str, tmp_path: Path) -> None:
    for name, ranks in survivors(fault, tmp_path).items():
        waited_for = CASES[name].waited_for
        for ended in ranks:
            assert ended.exit_code == 1, (name, ended)
            assert re.search(
                rf"errors\.ReductionError: rank [02] waited .* s for {waited_for} and gives up: ",
                ended.last_error,
            ), (name, ended.said)
            if fault in REASONS:
                assert REASONS[fault] in ended.last_error, (name, ended.said)
            else:
                assert names_silent(LOST, ended.last_error), (name, ended.said)
            assert (PAST in ended.said) == CASES[name].is_past, (name, ended.said)
