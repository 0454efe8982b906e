"""The trace and the report at the end of a fit on two ranks."""

from __future__ import annotations

from pathlib import Path

from lightning_gradsched import GradSchedStrategy
from lightning_gradsched.trace import Trace, read_trace
from tests.ranks import run_ranks
from tests.strategy.modules import Regression
from tests.strategy.test_fit import trainer


def traced_fit(rank: int, folder: str, traced_rank: int, planner: str) -> bool:
    """Whether another fit works after one of which one rank wants a trace."""
    path = f"{folder}/trace.json" if rank == traced_rank else None
    for _ in range(2):
        strategy = GradSchedStrategy(planner=planner, trace_path=path, record_every_n_steps=1)
        trainer(strategy).fit(Regression())
    return True


def traced(folder: Path, traced_rank: int, planner: str = "ddp") -> Trace | None:
    assert run_ranks(2, traced_fit, str(folder), traced_rank, planner) == [True, True]
    path = folder / "trace.json"
    return read_trace(path) if path.exists() else None


def test_rank_0_alone_decides_whether_a_trace_is_written(tmp_path: Path) -> None:
    """The report compares the ranks: if each went by its own path, they would wait for ever."""
    trace = traced(tmp_path, 0)
    assert trace is not None
    assert {row.waited_for for row in trace.report.rows} <= {None, 1}
    assert traced(tmp_path / "other", 1) is None


def test_the_trace_of_a_measured_plan_holds_its_prediction(tmp_path: Path) -> None:
    trace = traced(tmp_path, 0, "optimal")
    assert trace is not None
    assert trace.predicted is not None
    assert trace.report.predicted is not None
    assert trace.report.predicted.exposed_s == trace.predicted.exposed_s()
    assert all(row.predicted_finish_s is not None for row in trace.report.rows)
