"""Preempted, out of time, or without a node: a job goes on, and its loss curve shows nothing of it.

On two nodes of a real SLURM; every loss of every rank is compared bit by bit with those of a job
that nobody disturbed.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

from tests import measured
from tests.slurm.cluster import Cluster
from tests.slurm.disturbed import (
    BEFORE_STEP,
    N_STEPS,
    assert_undisturbed,
    diary,
    requeued,
    run_whole,
    submit,
    wait_for_step,
)
from tests.slurm.jobs import Job, sbatch

pytestmark = pytest.mark.slow


def record(job: Job, folder: Path, seconds: float, words: str) -> None:
    """What the job printed with ``words``, and how many steps were done twice."""
    lines = [line for line in job.text().splitlines() if words in line]
    measured.record(lines[0], seconds, len(diary(folder)) - N_STEPS)


@pytest.fixture(scope="module")
def whole(running_cluster: Cluster) -> Path:
    """The folder of a job that nothing came between."""
    return run_whole(running_cluster)


def test_preemption_by_a_job_of_a_higher_partition(cluster: Cluster, whole: Path) -> None:
    folder = cluster.shared / "preempted"
    # Long enough for SLURM to begin what comes between while the job still runs.
    job = submit(cluster, folder, "--partition=preemptible", "--signal=USR1@60", FIRST_BATCH_S="1")
    wait_for_step(job, folder, BEFORE_STEP)
    preempted_s = monotonic()
    urgent = sbatch(cluster, "--nodes=3", "--exclusive", "--wrap=sleep 1")
    job.prints("requeued job")
    requeued_s = monotonic() - preempted_s
    urgent.completes()
    job.completes()
    assert "SIGUSR1" in job.text()
    assert "requeued job" in job.text()
    record(job, folder, requeued_s, "preempted by")
    # Saved at the step of the signal, not at the last regular checkpoint: nothing is done twice.
    assert len(diary(folder)) == N_STEPS
    assert_undisturbed(folder, whole, n_attempts=2)


def test_time_limit(cluster: Cluster, whole: Path) -> None:
    folder = cluster.shared / "time_limit"
    # SLURM looks at time limits twice a minute.
    job = submit(cluster, folder, "--time=30", "--signal=USR1@60", FIRST_BATCH_S="2")
    wait_for_step(job, folder, BEFORE_STEP)
    # Half a minute away at least, so that SLURM tells the job before the time is over; and one and
    # a half at most.
    limited_s = monotonic()
    _, minutes, seconds = (int(part) for part in job.field("RunTime").split(":"))
    minutes += 1 if seconds < 30 else 2
    cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}")
    job.prints("requeued job")
    requeued_s = monotonic() - limited_s
    job.is_in("PENDING")
    cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
    job.completes()
    record(job, folder, requeued_s, "preempted by")
    assert len(diary(folder)) == N_STEPS
    assert_undisturbed(folder, whole, n_attempts=2)


def test_a_node_that_goes_down(cluster: Cluster, whole: Path) -> None:
    folder = cluster.shared / "node_down"
    job = submit(cluster, folder, "--nodelist=n[1-2]", FIRST_BATCH_S="1")
    wait_for_step(job, folder, BEFORE_STEP)
    down_s = monotonic()
    with cluster.down("n2"):
        job.is_in("PENDING")
        pending_s = monotonic() - down_s
        # Now on any two.
        cluster.run("scontrol", "update", f"JobId={job.id}", "ReqNodeList=")
        job.completes()
        assert job.field("NodeList") == "n[1,3]"
    record(job, folder, pending_s, "CANCELLED")
    # SLURM says SIGTERM first: what a rank on the lost node has no time to save is done again.
    assert len(diary(folder)) >= N_STEPS
    assert_undisturbed(folder, whole, n_attempts=2)


def test_requeues_with_one_slow_rank(cluster: Cluster, whole: Path) -> None:
    """Lightning's own handler hung in three of four; `benchmarks.requeues` does twenty."""
    folder = cluster.shared / "straggler"
    requeued(cluster, folder, 2)
    assert len(diary(folder)) == N_STEPS
    assert_undisturbed(folder, whole, n_attempts=3)
