"""GradSchedMonitor in whole fits on two ranks."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_gradsched import GradSchedError, GradSchedStrategy
from lightning_gradsched.monitor import GradSchedMonitor
from tests.ranks import errors_of_ranks, run_ranks
from tests.strategy.modules import Regression
from tests.strategy.test_fit import trainer

COLUMNS = {f"gradsched/{name}" for name in ("exposed_s", "overlap", "comm_s", "step_s")}


class ShownMetrics(pl.Callback):
    """What a progress bar would show after each batch."""

    def __init__(self) -> None:
        self.shown: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.shown.append("exposed_s" in trainer.progress_bar_metrics)


def monitored_fit(rank: int, folder: str) -> tuple[float, list[bool]]:
    shown = ShownMetrics()
    run = trainer(
        GradSchedStrategy(planner="ddp", record_every_n_steps=3),
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[GradSchedMonitor(progress_bar=True), shown],
    )
    run.fit(Regression())
    return run.strategy.report().exposed_s, shown.shown


def test_every_recorded_step_is_a_row_of_finite_numbers(tmp_path: Path) -> None:
    (exposed_s, shown), (_, shown_on_other) = run_ranks(2, monitored_fit, str(tmp_path))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() >= COLUMNS
    # 12 steps, recorded are the 3rd, 6th, …: measured from the end of the step before.
    assert len(rows) == len({row["step"] for row in rows}) == 4
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in COLUMNS), row
        assert 0 <= float(row["gradsched/overlap"]) <= 1
        assert float(row["gradsched/step_s"]) >= float(row["gradsched/comm_s"]) > 0
    assert float(rows[-1]["gradsched/exposed_s"]) == exposed_s
    first_shown = shown.index(True)
    assert all(shown[first_shown:]), "the number stays in the bar"
    assert not any(shown_on_other)


def fit_with_ddp(rank: int) -> None:
    trainer("ddp", callbacks=[GradSchedMonitor(progress_bar=True)]).fit(Regression())


def test_another_strategy_is_named() -> None:
    for message in errors_of_ranks(2, fit_with_ddp):
        assert message.startswith("GradSchedError")
        assert "got strategy DDPStrategy" in message
        assert 'Trainer(strategy="gradsched")' in message


@pytest.mark.parametrize(
    ("every", "message"), [(0, "record_every_n_steps to 1 or more"), (1, "has no logger")]
)
def test_a_monitor_that_could_log_nothing_is_refused(every: int, message: str) -> None:
    run = trainer(GradSchedStrategy(record_every_n_steps=every))
    with pytest.raises(GradSchedError, match=message):
        GradSchedMonitor().setup(run, Regression(), "fit")
