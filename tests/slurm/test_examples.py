"""Every script in examples/slurm/ is submitted as it is; what a user would set is set by flags."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import ROOT, STEP_S, TINY, Job, sbatch
from zoo.data.manifest import MANIFEST_NAME, FileEntry, Manifest

pytestmark = pytest.mark.slow

SCRIPTS = ROOT / "examples" / "slurm"


def overrides(photographs: Path, run_dir: Path) -> list[str]:
    return [*TINY, f"data.path={photographs}", f"hydra.run.dir={run_dir}"]


def test_every_script_has_a_test() -> None:
    tested = Path(__file__).read_text()
    names = sorted(path.name for path in SCRIPTS.iterdir())
    assert names
    assert [name for name in names if f'"{name}"' not in tested] == []


def ran(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run that left its checkpoint."""
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
    config: dict[str, Any] = yaml.safe_load((run_dir / "config.yaml").read_text())
    return config


def test_one_node(cluster: Cluster, photographs: Path) -> None:
    run_dir = cluster.shared / "one_node"
    script = SCRIPTS / "one_node.sbatch"
    assert "resume" in sbatch(cluster, script, *overrides(photographs, run_dir)).completes()
    trainer = ran(run_dir)["trainer"]
    assert (trainer["num_nodes"], trainer["devices"]) == (1, 2)


def test_several_nodes_is_submitted_in_test_launch() -> None:
    name = SCRIPTS / "several_nodes.sbatch"
    assert str(name.relative_to(ROOT)) in (Path(__file__).parent / "test_launch.py").read_text()


@pytest.mark.parametrize("name", ["nccl_infiniband.sbatch", "nccl_ethernet.sbatch"])
def test_nccl(cluster: Cluster, photographs: Path, name: str) -> None:
    """Without GPUs: that the script is taken, and its variables reach the ranks."""
    run_dir = cluster.shared / name
    environ = {"ACCELERATOR": "cpu"} | ({"IFNAME": "eth0"} if cluster.links else {})
    flags = ("--ntasks-per-node=1", "--gpus-per-node=1")
    script = SCRIPTS / name
    sbatch(cluster, *flags, script, *overrides(photographs, run_dir), **environ).completes()
    assert ran(run_dir)["trainer"]["num_nodes"] == 2


def test_sweep_array(cluster: Cluster, photographs: Path) -> None:
    run_dir = cluster.shared / "array"
    job = sbatch(
        cluster,
        *("--array=0-1", SCRIPTS / "sweep_array.sbatch"),
        *overrides(photographs, run_dir)[:-1],
        VALUES="1e-4 3e-4",
        RUNS=str(run_dir),
    )
    for task in (0, 1):
        Job(cluster, f"{job.id}_{task}").completes()
    rates = {path.name: ran(path)["optimizer"]["lr"] for path in run_dir.iterdir()}
    assert {name: float(rate) for name, rate in rates.items()} == {"1e-4": 1e-4, "3e-4": 3e-4}


def test_preemptible(cluster: Cluster, photographs: Path) -> None:
    run_dir = cluster.shared / "preemptible"
    settings = [*overrides(photographs, run_dir), "trainer.max_steps=100"]
    job = sbatch(cluster, "--partition=preemptible", SCRIPTS / "preemptible.sbatch", *settings)
    # The first validation is behind it.
    assert until(lambda: any(run_dir.glob("checkpoints/*.ckpt")), STEP_S), job.text()
    cluster.run("scancel", "--signal=USR1", job.id)
    text = job.completes()
    assert f"requeued job {job.id}" in text
    assert "preempted by SIGUSR1" in text
    assert job.field("Restarts") == "1"
    ran(run_dir)
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 100


def with_manifest(photographs: Path) -> Path:
    """A folder that holds the photographs as a data set."""
    folder = photographs.parent / "photographs"
    folder.mkdir(exist_ok=True)
    path = folder / "photographs.h5"
    shutil.copyfile(photographs, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = FileEntry(path.name, n_samples=1, nbytes=path.stat().st_size, sha256=digest)
    Manifest({}, (entry,)).save(folder / MANIFEST_NAME)
    return folder


def test_staging(cluster: Cluster, photographs: Path) -> None:
    run_dir = cluster.shared / "staged"
    job = sbatch(
        cluster,
        *("--ntasks-per-node=1", SCRIPTS / "staging.sbatch"),
        *(*TINY, f"hydra.run.dir={run_dir}"),
        DATA=str(with_manifest(photographs)),
        LOCAL=str(cluster.local_disk),
        SETTING="data.path",
        FILE="photographs.h5",
    )
    text = job.completes()
    assert text.count("1 of 1 files") == 2, "a node each"
    path = cluster.local_disk / f"zoo_{job.id}" / "photographs.h5"
    assert ran(run_dir)["data"]["path"] == str(path)
    assert [list(cluster.disk_of(node).iterdir()) for node in cluster.nodes] == [[], [], []]
