"""One configuration on one machine, under torchrun, srun and sbatch: the same weights."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import measured
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import PYTHON, ROOT, STEP_S, TINY, environ_of, sbatch, srun

pytestmark = pytest.mark.slow

Weights = dict[str, Tensor]


def train(photographs: Path, run_dir: Path) -> list[str]:
    """The command, but for what starts it."""
    folders = (f"data.path={photographs}", f"hydra.run.dir={run_dir}")
    return ["-m", "zoo.train", "experiment=super_resolution", *folders, *TINY]


def weights(run_dir: Path) -> Weights:
    path = run_dir / "checkpoints" / "last.ckpt"
    state: Weights = torch.load(path, weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def two_ranks(
    running_cluster: Cluster, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Weights:
    """Of two ranks that Lightning has started on this machine, without SLURM."""
    run_dir = tmp_path_factory.mktemp("alone")
    command = [PYTHON, *train(photographs, run_dir), "trainer.devices=2"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=environ_of(running_cluster),
        capture_output=True,
        text=True,
        timeout=STEP_S,
    )
    assert result.returncode == 0, result.stderr
    return weights(run_dir)


def assert_same(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    differ = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differ == []


def test_srun_on_two_nodes(cluster: Cluster, photographs: Path, two_ranks: Weights) -> None:
    run_dir = cluster.shared / "srun"
    ended = srun(
        cluster,
        *("--nodes=2", "--ntasks-per-node=1", PYTHON),
        *train(photographs, run_dir),
        "trainer.devices=1",
    )
    assert ended.code == 0, ended.text
    assert_same(weights(run_dir), two_ranks)


def test_torchrun_on_two_nodes(cluster: Cluster, photographs: Path, two_ranks: Weights) -> None:
    # Each rank reads the clock for its folder: they use the first rank's.
    command = train(photographs, cluster.shared / "torchrun")
    clock = "hydra.run.dir=" + str(cluster.shared / "torchrun" / "${now:%S-%f}")
    ended = srun(
        cluster,
        *("--nodes=2", "--ntasks-per-node=1", "--nodelist=n[1-2]"),
        *(Path(PYTHON).parent / "torchrun", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=n1:29533"),
        *[clock if part.startswith("hydra.run.dir") else part for part in command],
        "trainer.devices=1",
    )
    assert ended.code == 0, ended.text
    (run_dir,) = (cluster.shared / "torchrun").iterdir()
    assert_same(weights(run_dir), two_ranks)


def test_a_step_of_2_x_2_ranks_and_one_of_3_and_1(cluster: Cluster, photographs: Path) -> None:
    even = cluster.shared / "even"
    # Adam would blow up the last bit of a gradient that is nearly zero.
    plain = "optimizer._target_=torch.optim.SGD"
    job = sbatch(
        cluster,
        "examples/slurm/several_nodes.sbatch",
        *train(photographs, even)[3:],
        *("+strategy.reduction=flat", plain),
    )
    job.completes()
    uneven = {name: cluster.shared / f"uneven_{name}" for name in ("flat", "hierarchical")}
    for reduction, run_dir in uneven.items():
        ended = srun(
            cluster,
            *("--nodes=2", "--ntasks=4", "--distribution=block", PYTHON),
            *train(photographs, run_dir),
            *("trainer.devices=auto", f"+strategy.reduction={reduction}", plain),
        )
        assert ended.code == 0, ended.text
    assert_same(weights(uneven["flat"]), weights(even))
    for name, value in weights(uneven["hierarchical"]).items():
        torch.testing.assert_close(value, weights(even)[name])


def test_a_node_without_the_data(cluster: Cluster, photographs: Path) -> None:
    """One report and an end of all, also where nobody kills the others."""
    path = cluster.local_disk / "photographs.h5"
    shutil.copyfile(photographs, cluster.disk_of("n1") / path.name)
    (cluster.disk_of("n2") / path.name).write_bytes(b"half a file")
    run_dir = cluster.shared / "without"
    ended = srun(
        cluster,
        *("--nodes=2", "--ntasks-per-node=1", "--nodelist=n[1-2]", PYTHON),
        *(*train(path, run_dir), "trainer.devices=1"),
    )
    assert ended.code == 1, ended.text
    said = next(line for line in ended.text.splitlines() if "DataFileError" in line)
    measured.record(said.strip(), ended.seconds)
    assert ended.text.count("pre-flight: 1 problem; 2 ranks on n1, n2 stop") == 1, ended.text
    assert f"on rank 1: DataFileError: {path} is not a usable file of photographs" in ended.text
    assert "Traceback" not in ended.text
    assert not (run_dir / "config.yaml").exists()
