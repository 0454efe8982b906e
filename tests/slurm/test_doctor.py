"""`srun gradsched doctor` under a real SLURM."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GRADSCHED = Path(sys.executable).parent / "gradsched"


def running_slurm() -> bool:
    if shutil.which("srun") is None or shutil.which("sinfo") is None:
        return False
    idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    try:
        found = subprocess.run(idle, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return found.returncode == 0 and found.stdout.strip() not in ("", "0")


needs_slurm = pytest.mark.skipif(not running_slurm(), reason="no running SLURM with an idle node")


@needs_slurm
@pytest.mark.parametrize(("n_nodes", "n_ranks"), [(1, 2), (2, 3)])
def test_srun_joins_the_ranks_and_counts_the_nodes(n_nodes: int, n_ranks: int) -> None:
    srun = ["srun", "--immediate=30", f"--nodes={n_nodes}", f"--ntasks={n_ranks}"]
    result = subprocess.run(
        [*srun, "--time=2", GRADSCHED, "doctor"], capture_output=True, text=True, timeout=120
    )
    if "Requested nodes are busy" in result.stderr or "More processors requested" in result.stderr:
        pytest.skip(f"this SLURM has no room for {n_ranks} tasks on {n_nodes} nodes")
    assert result.returncode == 0, result.stderr
    assert f"ranks      {n_ranks}, nodes {n_nodes}, at most 2 ranks a node" in result.stdout
    assert result.stdout.count("versions ") == 1, "rank 0 alone speaks"
