from __future__ import annotations

import pytest

from lightning_gradsched.core.report import GroupInfo, OverlapReport
from lightning_gradsched.core.timeline import COMMUNICATION, COMPUTE, QUEUE, Span, Timeline


def step(*groups: tuple[float, float, float], backward_s: float = 10.0) -> Timeline:
    """Each group as (ready, launched, finished)."""
    spans = [Span(COMPUTE, "before", -5.0, 0.0), Span(COMPUTE, "backward", 0.0, backward_s)]
    for number, (ready, launched, finished) in enumerate(groups):
        spans.append(Span(QUEUE, str(number), ready, launched))
        spans.append(Span(COMMUNICATION, str(number), launched, finished))
    return Timeline(tuple(spans))


def report(*timelines: Timeline, n_groups: int) -> OverlapReport:
    groups = [GroupInfo(str(i), (f"layer{i}.weight",), 1024) for i in range(n_groups)]
    return OverlapReport.of(timelines, groups)


def test_sums_of_a_step() -> None:
    result = report(step((2, 2, 5), (10, 10, 13)), n_groups=2)
    assert (result.step_s, result.compute_s, result.comm_s) == (18.0, 15.0, 6.0)
    assert (result.exposed_s, result.overlap) == (3.0, 0.5)


@pytest.mark.parametrize(
    ("groups", "reasons"),
    [
        ([(2, 2, 5), (10, 10, 13)], ["hidden", "last group"]),
        ([(9, 9, 12), (9, 9, 15)], ["ready too late to hide", "last group"]),
        # the link was busy until 9 with group 0, whose own turn took long
        ([(1, 1, 9), (2, 2, 12)], ["hidden", "waited for the link"]),
        # ready at 1, but launched only at 9, after group 0 of the schedule
        ([(9, 9, 9.5), (1, 9.5, 11)], ["hidden", "waited for order"]),
    ],
)
def test_reasons(groups: list[tuple[float, float, float]], reasons: list[str]) -> None:
    rows = report(step(*groups), n_groups=2).rows
    assert [row.reason for row in rows] == reasons


def test_exposed_time_of_groups_adds_up_where_they_share_the_link() -> None:
    result = report(step((8, 8, 11), (9, 9, 14)), n_groups=2)
    assert [row.exposed_s for row in result.rows] == [1.0, 3.0]
    assert sum(row.exposed_s for row in result.rows) == result.exposed_s


def test_medians_over_steps_and_rows_of_the_typical_one() -> None:
    steps = [step((10, 10, 10 + exposed)) for exposed in (1.0, 9.0, 2.0)]
    result = report(*steps, n_groups=1)
    assert (result.n_steps, result.exposed_s) == (3, 2.0)
    assert result.rows[0].finish_s == 12.0


def test_the_table_has_a_row_a_group_and_the_dict_is_json() -> None:
    result = report(step((2, 2, 5), (10, 10, 13)), n_groups=2)
    lines = str(result).splitlines()
    assert "50% hidden" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["group", "0", "1"]
    assert lines[3].endswith("last group")
    assert result.to_dict()["rows"][1]["reason"] == "last group"
