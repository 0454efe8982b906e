"""`srun gradsched doctor` under a real SLURM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import srun

GRADSCHED = Path(sys.executable).parent / "gradsched"


@pytest.mark.slow
def test_it_joins_the_ranks_and_counts_the_nodes(cluster: Cluster) -> None:
    # SLURM puts two of the three on the first node.
    ended = srun(cluster, "--nodes=2", "--ntasks=3", GRADSCHED, "doctor")
    assert ended.code == 0, ended.text
    assert "ranks      3, nodes 2, at most 2 ranks a node" in ended.text
    assert "pre-flight 3 ranks on 2 nodes" in ended.text
    assert ended.text.count("versions ") == 1, "rank 0 alone speaks"


def test_it_reports_what_the_job_would_meet(cluster: Cluster) -> None:
    step = ("--nodes=2", "--ntasks-per-node=1", GRADSCHED, "doctor")
    ended = srun(cluster, *step, "--devices=4", f"--run-dir={cluster.local_disk}/run")
    assert ended.code == 1
    assert ended.text.count("pre-flight: 2 problems") == 1, ended.text
    assert "expected 4 ranks on each node (devices=4), got 1 on n1, 1 on n2" in ended.text
    assert "expected a run folder that all nodes share" in ended.text
    assert "all-reduce" not in ended.text
