"""Every script in examples/slurm/ is submitted as it is; what a user would set is set by flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import ROOT, TINY, sbatch

pytestmark = pytest.mark.slow

SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))


def overrides(photographs: Path, run_dir: Path) -> list[str]:
    return [*TINY, f"data.path={photographs}", f"hydra.run.dir={run_dir}"]


def test_every_script_has_a_test() -> None:
    tested = Path(__file__).read_text()
    assert SCRIPTS
    assert [path.name for path in SCRIPTS if f'"{path.name}"' not in tested] == []


@pytest.mark.parametrize("script", ["one_node.sbatch"])
def test_one_node(cluster: Cluster, photographs: Path, script: str) -> None:
    run_dir = cluster.shared / "one_node"
    job = sbatch(cluster, f"examples/slurm/{script}", *overrides(photographs, run_dir))
    assert "resume" in job.completes()
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
