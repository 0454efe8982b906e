"""A signal to one rank: all stop after one step, and the resumed run is the same, bit for bit."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_gradsched import GradSchedStrategy
from lightning_gradsched.preemption import EXIT_CODE, job_id, requeue
from tests.ranks import run_ranks
from tests.survival.jobs import MODULES, Trouble, trainer, weights

Run = dict[str, Any]


def fit(rank: int, folder: str, module: str, trouble: Any, resume: Any, options: Any) -> Run:
    """One fit; how it ended, what it trained on, and with what."""
    pl.seed_everything(5 + rank, verbose=False)
    net = MODULES[module]()
    callbacks = [Trouble(*trouble)] if trouble else []
    run = trainer(folder, callbacks=callbacks, **options)
    exit_code = None
    before = signal.getsignal(signal.SIGTERM)
    try:
        run.fit(net, ckpt_path=resume)
    except SystemExit as exit:
        exit_code = exit.code
    assert signal.getsignal(signal.SIGTERM) == before
    return {
        "exit_code": exit_code,
        "losses": net.losses,
        "seen": net.seen,
        "weights": weights(net),
        "metrics": dict(run.callback_metrics),
    }


def interrupted(folder: Path, module: str, trouble: Any, **options: Any) -> tuple[Any, Any, Any]:
    """The whole run, its first part and the rest, each by rank."""
    whole = run_ranks(2, fit, str(folder / "whole"), module, None, None, options)
    first = run_ranks(2, fit, str(folder / "cut"), module, trouble, None, options)
    rest = run_ranks(2, fit, str(folder / "cut"), module, None, "hpc", options)
    return whole, first, rest


def assert_same(whole: Any, first: Any, rest: Any, n_first: int | None = None) -> None:
    # A rank that Lightning's launcher has started exits by 0: its observer would kill rank 0.
    assert [run["exit_code"] for run in (*whole, *first, *rest)] == [
        *(None, None, EXIT_CODE, 0, None, None)
    ]
    for one, begun, ended in zip(whole, first, rest, strict=True):
        if n_first is not None:
            assert len(begun["losses"]) == n_first
        assert begun["losses"] + ended["losses"] == one["losses"]
        assert begun["seen"] + ended["seen"] == one["seen"]
        for name, value in one["weights"].items():
            assert torch.equal(ended["weights"][name], value), name
        assert ended["metrics"] == one["metrics"]


TERM, USR1 = int(signal.SIGTERM), int(signal.SIGUSR1)


@pytest.mark.parametrize(
    ("module", "trouble", "n_first", "options"),
    [
        ("by_zoo", (TERM, 8, 1, 0), 8, {}),
        # 6 batches an epoch. Rank 1 gets the signal, in its 2nd batch; rank 0 is slow.
        ("net", (TERM, 2, 1, 0), 2, {}),
        ("net", (USR1, 7, 0, 1), 7, {"max_epochs": -1, "max_steps": 14}),
        # The optimizer steps after batches 3 and 6: it ends with the third.
        ("net", (TERM, 2, 1, 0), 3, {"accumulate_grad_batches": 3}),
        # The epoch ends with the 6th, and validation follows: one batch more.
        ("validated", (TERM, 6, 0, 1), 7, {}),
        ("validated", (TERM, 3, 0), 4, {"val_check_interval": 3}),
        ("manual", (TERM, 2, 0, 1), None, {}),
    ],
)
def test_the_resumed_run_is_the_uninterrupted_one(
    module: str, trouble: Any, n_first: int | None, options: Any, tmp_path: Path
) -> None:
    assert_same(*interrupted(tmp_path, module, trouble, **options), n_first)


def test_without_any_reduction_the_ranks_ask_each_other(tmp_path: Path) -> None:
    """Every 16 batches; where no optimizer steps it then waits for 17 more."""
    options = {"max_epochs": 9}
    first, second = run_ranks(2, fit, str(tmp_path), "no_backward", (TERM, 1, 1), None, options)
    assert (first["exit_code"], second["exit_code"]) == (EXIT_CODE, 0)
    assert len(first["losses"]) == len(second["losses"]) == 33


def test_where_signals_are_left_alone_lightning_handles_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected names of signals that can be caught, such as"):
        GradSchedStrategy(preempt_signals=("SIGKILL",))
    assert GradSchedStrategy(preempt_signals=[]).config.preempt_signals == ()


def again_and_again(rank: int, folder: str, n_times: int) -> list[tuple[Any, int]]:
    """Preempted in the middle, resumed and preempted again; rank 0 is slow throughout."""
    ends = []
    for time in range(n_times):
        pl.seed_everything(rank, verbose=False)
        net = MODULES["net"]()
        run = trainer(
            folder, callbacks=[Trouble((TERM, USR1)[time % 2], 2, time % 2, 0)], max_epochs=-1
        )
        try:
            run.fit(net, ckpt_path="hpc" if time else None)
        except SystemExit as exit:
            ends.append((exit.code, run.global_step))
    return ends


def test_twenty_times_in_a_row_with_a_slow_rank(tmp_path: Path) -> None:
    first, second = run_ranks(2, again_and_again, str(tmp_path), 20, timeout_s=120.0)
    assert [code for code, _ in first] == [EXIT_CODE] * 20
    assert [step for _, step in first] == [step for _, step in second]
    # 6 batches an epoch: a signal in the last is obeyed after the first of the next.
    steps = [step for _, step in first]
    assert all(0 < b - a <= 3 for a, b in pairwise(steps)), steps
    assert len(list(tmp_path.glob("hpc_ckpt_*.ckpt"))) == 2, "older ones are removed"


def test_requeue_names_the_job_and_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert job_id() == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    asked: list[Any] = []

    class Done:
        returncode, stderr = 0, ""

    def run(command: list[str], **_: Any) -> Done:
        asked.append(command)
        return Done()

    assert requeue(run) == "requeued job 17_3"
    assert asked == [["scontrol", "requeue", "17_3"]]
    Done.returncode, Done.stderr = 1, "Job is held\n"
    assert requeue(run) == "job 17_3 could not be requeued: Job is held. Next: sbatch it again"
