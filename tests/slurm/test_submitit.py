"""`python -m zoo.train --multirun launcher=slurm`: a sweep as a job array, followed to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import PYTHON, ROOT, STEP_S, TINY, environ_of
from zoo.errors import UserError
from zoo.launch import require_plugins

MULTIRUN = (
    PYTHON,
    "-m",
    "zoo.train",
    "--multirun",
    "launcher=slurm",
    "experiment=super_resolution",
)


@pytest.mark.slow
def test_a_sweep_of_jobs_on_two_nodes(cluster: Cluster, photographs: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    sweep = cluster.shared / "sweep"
    result = subprocess.run(
        [
            *MULTIRUN,
            *("launcher.nodes=2", "launcher.timeout_min=20", "optimizer.lr=1e-3,2e-3"),
            *(f"hydra.sweep.dir={sweep}", f"hydra.launcher.submitit_folder={sweep}/jobs/%j"),
            *(*TINY, f"data.path={photographs}"),
        ],
        cwd=ROOT,
        env=environ_of(cluster),
        capture_output=True,
        text=True,
        timeout=2 * STEP_S,
    )
    assert result.returncode == 0, result.stderr
    jobs = {path.name.partition("_")[0] for path in (sweep / "jobs").glob("*_*")}
    assert len(jobs) == 1, "one array"
    for number, rate in ((0, "0.001"), (1, "0.002")):
        run_dir = sweep / str(number)
        config = (run_dir / "config.yaml").read_text()
        assert f"lr: {rate}" in config
        assert "num_nodes: 2" in config
        assert json.loads((run_dir / "results.json").read_text())["pictures"]
        assert (run_dir / "checkpoints" / "last.ckpt").exists()


def test_without_the_plugin_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_plugins(["launcher=none"])
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[zoo,slurm\]'"):
        require_plugins(["--multirun", "launcher=slurm"])
