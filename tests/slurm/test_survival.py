"""Preempted, out of time, or without a node: a job goes on, and its loss curve shows nothing of it.

On two nodes of a real SLURM; every loss of every rank is compared bit by bit with those of a job
that nobody disturbed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import PYTHON, STEP_S, Job, sbatch, srun

pytestmark = pytest.mark.slow

N_STEPS = 40
# Some epochs of six steps are behind it, and it is in the middle of one.
BEFORE_STEP = 8
PROGRAM = (PYTHON, "-m", "tests.slurm.interrupted")
FLAGS = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append")

Losses = list[dict[int, list[Any]]]


def diary(folder: Path) -> list[list[Any]]:
    path = folder / "rank_0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(folder: Path) -> Losses:
    """Loss and samples by step, for each rank; a step that was done again must be the same."""
    ranks: Losses = []
    for path in sorted(folder.glob("rank_*.jsonl")):
        steps: dict[int, list[Any]] = {}
        for line in path.read_text().splitlines():
            _, step, *done = json.loads(line)
            assert steps.setdefault(step, done) == done, (path, step)
        ranks.append(steps)
    return ranks


def submit(cluster: Cluster, folder: Path, *flags: str, **environ: str) -> Job:
    command = f"srun --kill-on-bad-exit=1 {' '.join(PROGRAM)} {folder} {N_STEPS}"
    return sbatch(cluster, *FLAGS, *flags, f"--wrap={command}", **environ)


def wait_for_step(job: Job, folder: Path, step: int, attempt: int = 0) -> None:
    def is_there() -> bool:
        return any(line[0] == attempt and line[1] >= step for line in diary(folder))

    assert until(is_there, STEP_S, 0.05), job.text()


def assert_undisturbed(folder: Path, whole: Path, n_attempts: int) -> None:
    assert max(line[0] for line in diary(folder)) == n_attempts - 1
    ours, theirs = losses(folder), losses(whole)
    assert [sorted(rank) for rank in ours] == [list(range(1, N_STEPS + 1))] * 2
    assert ours == theirs
    weights, expected = (torch.load(f / "weights.pt", weights_only=True) for f in (folder, whole))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def whole(running_cluster: Cluster) -> Path:
    """The folder of a job that nothing came between."""
    folder = running_cluster.shared / "whole"
    ended = srun(running_cluster, *FLAGS[:2], *PROGRAM, folder, str(N_STEPS))
    assert ended.code == 0, ended.text
    return folder


def test_preemption_by_a_job_of_a_higher_partition(cluster: Cluster, whole: Path) -> None:
    folder = cluster.shared / "preempted"
    job = submit(cluster, folder, "--partition=preemptible", "--signal=USR1@60")
    wait_for_step(job, folder, BEFORE_STEP)
    urgent = sbatch(cluster, "--nodes=3", "--exclusive", "--wrap=sleep 1")
    urgent.completes()
    job.completes()
    assert "SIGUSR1" in job.text()
    assert "requeued job" in job.text()
    # Saved at the step of the signal, not at the last regular checkpoint: nothing is done twice.
    assert len(diary(folder)) == N_STEPS
    assert_undisturbed(folder, whole, n_attempts=2)


def test_time_limit(cluster: Cluster, whole: Path) -> None:
    folder = cluster.shared / "time_limit"
    job = submit(cluster, folder, "--time=30", "--signal=USR1@60")
    wait_for_step(job, folder, BEFORE_STEP)
    # So that it is a minute away at most.
    minutes = [int(part) for part in job.field("RunTime").split(":")][1] + 1
    cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}")
    job.is_in("PENDING")
    cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
    job.completes()
    assert len(diary(folder)) == N_STEPS
    assert_undisturbed(folder, whole, n_attempts=2)


def test_a_node_that_goes_down(cluster: Cluster, whole: Path) -> None:
    folder = cluster.shared / "node_down"
    job = submit(cluster, folder, "--nodelist=n[1-2]")
    wait_for_step(job, folder, BEFORE_STEP)
    with cluster.down("n2"):
        job.is_in("PENDING")
        # Now on any two.
        cluster.run("scontrol", "update", f"JobId={job.id}", "ReqNodeList=")
        job.completes()
        assert job.field("NodeList") == "n[1,3]"
    # From the last checkpoint: some steps are done again, with the same losses.
    assert len(diary(folder)) > N_STEPS
    assert_undisturbed(folder, whole, n_attempts=2)


def requeued(cluster: Cluster, folder: Path, n_times: int) -> Job:
    """A job with a straggler that is told `n_times` to leave, each time after some more steps."""
    job = submit(cluster, folder, "--signal=USR1@60", SLOW_RANK="1")
    for attempt in range(n_times):
        wait_for_step(job, folder, 2 + attempt * (N_STEPS - 4) // n_times, attempt)
        cluster.run("scancel", "--signal=USR1", job.id)
        assert until(lambda attempt=attempt: int(job.field("Restarts")) > attempt, STEP_S, 0.2), (
            job.text()
        )
    job.completes()
    return job


def test_requeues_with_one_slow_rank(cluster: Cluster, whole: Path) -> None:
    """Lightning's own handler hung in three of four; `benchmarks.requeues` does twenty."""
    folder = cluster.shared / "straggler"
    requeued(cluster, folder, 2)
    assert len(diary(folder)) == N_STEPS
    assert_undisturbed(folder, whole, n_attempts=3)
