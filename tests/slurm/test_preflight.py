"""What is wrong with a launch is one report and an exit of all ranks, under a real SLURM."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from lightning_gradsched.runtime.topology import meeting_ports
from tests import measured
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import PYTHON, ROOT, Ended, sbatch, srun

CHECK = (PYTHON, "-m", "tests.slurm.check_launch")
TWO_BY_TWO = ("--nodes=2", "--nodelist=n[1-2]", "--ntasks-per-node=2")
# A rank that does not come is waited for so long; longer than programs take to start.
WAIT_S = 10


def as_rank(cluster: Cluster, changes: str, *arguments: str) -> tuple[str, ...]:
    """A step of 2 x 2 whose ranks do `changes` in a shell before they start the program.

    No shell does so before SLURM has started all four.
    """
    meet = all_are_there(f"{cluster.shared}/started.$SLURM_JOB_ID", "$SLURM_PROCID", 4)
    program = " ".join([*CHECK, f"timeout_s={WAIT_S}", *arguments])
    return (*TWO_BY_TWO, "sh", "-c", f"{meet}; {changes}; exec {program}")


def all_are_there(folder: str, name: str, n_names: int) -> str:
    """A line of shell that waits until so many have said their names in `folder`."""
    return (
        f"mkdir -p {folder}; touch {folder}/{name};"
        f" until [ $(ls {folder} | wc -l) -ge {n_names} ]; do sleep 0.1; done"
    )


def the_report(ended: Ended, *said: str) -> str:
    """The only report, after checking that it says so and that every rank has failed."""
    assert ended.code == 1, ended.text
    assert ended.text.count("pre-flight:") == 1, ended.text
    measured.record(" ".join(said), ended.seconds)
    assert "agreed" not in ended.text
    assert "Traceback" not in ended.text
    for each in said:
        assert each in ended.text, ended.text
    failed = re.findall(r"tasks? ([\d,-]+): Exited with exit code 1", ended.text)
    assert failed, ended.text
    return ended.text


def test_a_healthy_launch_agrees_on_folder_and_port(cluster: Cluster) -> None:
    run_dir = cluster.shared / "healthy"
    ended = srun(cluster, *TWO_BY_TWO, *CHECK, f"run_dir={run_dir}", "devices=2", "num_nodes=2")
    assert ended.code == 0, ended.text
    agreed = set(re.findall(r"agreed (.*) took", ended.text))
    assert len(agreed) == 1
    (line,) = agreed
    assert f"run_dir='{run_dir}', n_ranks=4, n_nodes=2" in line
    assert list(run_dir.iterdir()) == [], "the marker is gone"


def test_wrong_tasks_per_node(cluster: Cluster) -> None:
    flags = ("--nodes=2", "--nodelist=n[1-2]", "--ntasks-per-node=1")
    ended = srun(cluster, *flags, *CHECK, "devices=2", "num_nodes=3")
    the_report(
        ended,
        "expected 2 ranks on each node (devices=2), got 1 on n1, 1 on n2",
        "srun --ntasks-per-node=2",
        "expected num_nodes=3, got ranks on 2 (n1, n2)",
    )


def test_ranks_that_disagree_on_their_number_and_come_twice(cluster: Cluster) -> None:
    changes = "[ $SLURM_PROCID = 2 ] && export SLURM_PROCID=0;"
    changes += "[ $SLURM_PROCID = 3 ] && export SLURM_STEP_NUM_TASKS=2"
    the_report(
        srun(cluster, *as_rank(cluster, changes)),
        "expected one world size on all ranks, got 4 (ranks 0-1), 2 (ranks 3)",
        "expected rank 0 once, got it from n",
        "rank 2 did not come",
    )


def test_a_rank_that_does_not_come(cluster: Cluster) -> None:
    ended = srun(cluster, *as_rank(cluster, "[ $SLURM_PROCID = 3 ] && exit 0"))
    waited = re.search(r"got 3 in (\d+) s", ended.text)
    assert waited is not None, ended.text
    assert int(waited[1]) >= WAIT_S
    the_report(ended, f"expected 4 ranks, {waited[0]}: rank 3 did not come")


def test_a_first_rank_that_does_not_come(cluster: Cluster) -> None:
    ended = srun(cluster, *as_rank(cluster, "[ $SLURM_PROCID = 0 ] && exit 0"))
    assert ended.code == 1
    for rank in (1, 2):  # the first on each node
        node = f"n{1 + rank // 2}"
        said = f"rank {rank} on {node} expected rank 0 of 4 at n1 within {WAIT_S} s"
        assert said in ended.text, ended.text
    assert "Connection refused" in ended.text


def test_a_master_port_in_use(cluster: Cluster) -> None:
    hold = (
        "import socket, time; s = socket.create_server(('', 29511));"
        " print('ready', flush=True); time.sleep(600)"
    )
    holder = sbatch(cluster, "--nodes=1", "--nodelist=n1", f'--wrap={PYTHON} -c "{hold}"')
    holder.prints("ready")
    ended = srun(cluster, "--nodelist=n[1-2]", *as_rank(cluster, "export MASTER_PORT=29511"))
    the_report(
        ended,
        "on rank 0: expected that port 29511 (MASTER_PORT) is free, got Address already in use",
        "unset MASTER_PORT",
    )


def numbers_with_the_same_ports() -> list[int]:
    """Two job numbers whose ranks look for rank 0 at the same ports."""
    seen: dict[tuple[int, ...], int] = {}
    for number in range(10_000, 100_000, 10_000 - 1_000):
        for job in range(number, number + 1000):
            ports = tuple(meeting_ports(f"{job}-0-0"))
            if ports in seen:
                return [seen[ports], job]
            seen[ports] = job
    raise AssertionError("no two jobs share ports")


def test_jobs_of_one_node_that_look_at_the_same_ports_do_not_meet(cluster: Cluster) -> None:
    # Lightning gives jobs whose numbers end alike one port.
    steps = []
    for number in numbers_with_the_same_ports():
        own = f"SLURM_JOB_ID={number} SLURM_STEP_ID=0 SLURM_RESTART_COUNT=0"
        # Both first ranks wait at the same time; the others come only then.
        names = f"{cluster.shared}/started.$SLURM_JOB_ID", f"{number}.$SLURM_PROCID"
        meet = all_are_there(*names, 4)
        steps.append(
            f"srun --overlap -n2 sh -c '{meet}; [ $SLURM_PROCID = 1 ] && sleep 2; export {own};"
            f" exec {' '.join(CHECK)}' &"
        )
    script = "\n".join([*steps, "wait"])
    text = sbatch(cluster, "--nodes=1", "--ntasks=4", f"--wrap={script}").completes()
    assert text.count("n_ranks=2, n_nodes=1") == 4, text
    ports = re.findall(r"port (\d+)", text)
    assert sorted(ports.count(port) for port in set(ports)) == [2, 2], text


def test_unlike_versions_and_checkouts(cluster: Cluster) -> None:
    for node, commit in (("n1", "a" * 40), ("n2", "b" * 40)):
        git = cluster.disk_of(node) / "checkout" / ".git"
        (git / "refs" / "heads").mkdir(parents=True)
        (git / "HEAD").write_text("ref: refs/heads/main\n")
        (git / "refs" / "heads" / "main").write_text(f"{commit}\n")
    info = cluster.disk_of("n2") / "site" / "torch-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n")
    site = f"export PYTHONPATH={cluster.local_disk}/site:{ROOT}"
    ended = srun(cluster, *as_rank(cluster, f"cd {cluster.local_disk}/checkout; {site}"))
    report = the_report(
        ended,
        "expected one git commit of the working directory on all ranks, got aaaaaaaaaaaa (ranks"
        " 0-1), bbbbbbbbbbbb (ranks 2-3)",
        "0.1 (ranks 2-3): start all from one environment",
    )
    assert "expected one version of torch on all ranks" in report


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("/proc/gradsched", "expected a run folder that can be written, got /proc/gradsched"),
        ("{local}/run", "expected a run folder that all nodes share, got {local}/run with rank 2"),
    ],
    ids=["unwritable", "unshared"],
)
def test_a_run_folder_that_is_no_good(cluster: Cluster, folder: str, said: str) -> None:
    run_dir, expected = (text.format(local=cluster.local_disk) for text in (folder, said))
    the_report(srun(cluster, *TWO_BY_TWO, *CHECK, f"run_dir={run_dir}"), expected)


def test_clocks_that_differ(cluster: Cluster) -> None:
    site = cluster.disk_of("n2") / "site"
    site.mkdir()
    shift = "import time\nreal = time.time\ntime.time = lambda: real() + 61.0\n"
    (site / "sitecustomize.py").write_text(shift)
    ended = srun(cluster, *as_rank(cluster, f"export PYTHONPATH={cluster.local_disk}/site"))
    the_report(ended, "expected clocks within 5 s of each other, got n2's 6", "ahead of rank 0's")


def test_an_interface_that_is_not_there(cluster: Cluster) -> None:
    ended = srun(cluster, *as_rank(cluster, "export GLOO_SOCKET_IFNAME=ib7"))
    the_report(ended, "on ranks 0-3: expected the network interface GLOO_SOCKET_IFNAME=ib7, got lo")


def test_an_interface_that_does_not_route(cluster: Cluster) -> None:
    if cluster.links is None:
        pytest.skip("nodes without links of their own share one loopback")
    ended = srun(cluster, *as_rank(cluster, "export GLOO_SOCKET_IFNAME=lo"))
    the_report(
        ended,
        "expected that rank 2 on n2 reaches rank 0 on n1 at 127.0.0.1 (GLOO_SOCKET_IFNAME=lo)",
    )


def test_a_job_script_that_forgets_srun(cluster: Cluster) -> None:
    job = sbatch(cluster, *TWO_BY_TWO, f"--wrap={' '.join(CHECK)}")
    assert job.end() == "FAILED"
    assert "expected one of the 4 ranks" in job.text()
    assert "write srun before the command" in job.text()


def test_torchrun_in_srun(cluster: Cluster) -> None:
    agents = (
        *("--nodes=2", "--ntasks-per-node=1", Path(PYTHON).parent / "torchrun"),
        *("--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=n1:29522"),
    )
    program = ("-m", "tests.slurm.check_launch", "devices=2", "num_nodes=2")
    ended = srun(cluster, "--nodelist=n[1-2]", *agents, *program)
    assert ended.code == 0, ended.text
    assert ended.text.count("n_ranks=4, n_nodes=2") == 4, ended.text
    wrong = srun(cluster, "--nodelist=n[1-2]", *agents, *program[:2], "devices=4", "timeout_s=20")
    assert wrong.code != 0
    assert wrong.text.count("pre-flight:") == 1, wrong.text
    assert "torchrun --nproc-per-node 4" in wrong.text
    assert socket.gethostname() not in wrong.text
