"""A job on two nodes that something comes between, and what it leaves; see `interrupted`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import PYTHON, STEP_S, Job, sbatch, srun

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


def submit(
    cluster: Cluster, folder: Path, *flags: str, n_steps: int = N_STEPS, **environ: str
) -> Job:
    command = f"srun --kill-on-bad-exit=1 {' '.join(PROGRAM)} {folder} {n_steps}"
    return sbatch(cluster, *FLAGS, *flags, f"--wrap={command}", **environ)


def wait_for_step(job: Job, folder: Path, step: int, attempt: int = 0) -> None:
    def is_there() -> bool:
        return any(line[0] == attempt and line[1] >= step for line in diary(folder))

    assert until(is_there, STEP_S, 0.05), job.text()


def assert_undisturbed(folder: Path, whole: Path, n_attempts: int, n_steps: int = N_STEPS) -> None:
    assert max(line[0] for line in diary(folder)) == n_attempts - 1
    ours, theirs = losses(folder), losses(whole)
    assert [sorted(rank) for rank in ours] == [list(range(1, n_steps + 1))] * 2
    assert ours == theirs
    weights, expected = (torch.load(f / "weights.pt", weights_only=True) for f in (folder, whole))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def run_whole(cluster: Cluster, n_steps: int = N_STEPS) -> Path:
    """The folder of a run that nothing comes between."""
    folder = cluster.shared / "whole"
    ended = srun(cluster, *FLAGS[:2], *PROGRAM, folder, str(n_steps))
    assert ended.code == 0, ended.text
    return folder


def requeued(cluster: Cluster, folder: Path, n_times: int, n_steps: int = N_STEPS) -> Job:
    """A job with a straggler that is told `n_times` to leave, each time after some more steps.

    Each time it does two steps or more: there must be enough, or it ends before it is told.
    """
    job = submit(cluster, folder, "--signal=USR1@60", n_steps=n_steps, SLOW_RANK="1")
    for attempt in range(n_times):
        # Some steps are left after the last signal.
        wait_for_step(job, folder, 2 + attempt * (n_steps - 12) // n_times, attempt)
        cluster.run("scancel", "--signal=USR1", job.id)
        assert until(lambda attempt=attempt: int(job.field("Restarts")) > attempt, STEP_S, 0.2), (
            job.text()
        )
    job.completes()
    return job
