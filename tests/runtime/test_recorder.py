"""Which steps are recorded, and of which plan."""

from __future__ import annotations

from typing import cast

import torch

from lightning_gradsched.core.report import GroupInfo
from lightning_gradsched.runtime.collectives import Work
from lightning_gradsched.runtime.recorder import (
    FIRST_RECORDED_STEP,
    CpuClock,
    Recorder,
    StepRecords,
)


class Done:
    def wait(self) -> None: ...

    def get_future(self) -> torch.futures.Future[None]:
        future: torch.futures.Future[None] = torch.futures.Future()
        future.set_result(None)
        return future


def run(records: StepRecords, recorder: Recorder | None, n_steps: int) -> Recorder | None:
    """Steps of one group each, from what ``recorder`` the step before left."""
    for _ in range(n_steps):
        if recorder is not None:
            recorder.backward_began()
            recorder.turn_came(0)
            recorder.launched(0, cast(Work, Done()))
            recorder.backward_ended()
            recorder.ended()
        recorder = records.turn(recorder)
    return recorder


def test_steps_of_a_former_plan_are_kept_until_one_of_the_next_is_there() -> None:
    records = StepRecords(CpuClock(), every_n_steps=20)
    records.start([GroupInfo("0", ("first",), 4)])
    run(records, None, FIRST_RECORDED_STEP + 1)
    assert records.are_current
    assert records.report().rows[0].names == ("first",)

    records.start([GroupInfo("0", ("second",), 4)])
    recorder = run(records, None, FIRST_RECORDED_STEP)
    assert not records.are_current
    assert records.report().rows[0].names == ("first",), "what there is"

    run(records, recorder, 1)
    assert records.are_current
    assert records.report().rows[0].names == ("second",)
    assert records.report().n_steps == 1
