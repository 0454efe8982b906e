"""The tests' own SLURM: its nodes are hosts of their own, and nothing of it stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, until
from tests.slurm.jobs import sbatch, srun


def test_nodes_have_names_and_disks_of_their_own(cluster: Cluster) -> None:
    write = f"hostname > {cluster.local_disk}/name && getent hosts n2"
    ended = srun(cluster, "--nodes=3", "--ntasks-per-node=1", "sh", "-c", write)
    assert ended.code == 0, ended.text
    assert ended.text.count(cluster.address("n2")) == 3
    for node in cluster.nodes:
        assert (cluster.disk_of(node) / "name").read_text() == f"{node}\n"


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def is_listened_to(port: int) -> bool:
    """Whether any process of this host listens there."""
    sockets = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    return any(f":{port:04X} " in line and " 0A " in line for line in sockets.splitlines())


@pytest.mark.skipif(missing() != "", reason=missing())
def test_nothing_is_left_after_a_test_that_fails_with_a_job_running() -> None:
    with pytest.raises(ZeroDivisionError), Cluster(1, 2) as own:  # noqa: PT012
        # A task that hears no SIGTERM.
        sleep = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(98765)"
        job = sbatch(own, f"--wrap=srun python3 -c '{sleep}'")
        job.is_in("RUNNING")
        assert until(lambda: len(processes_with("sleep(98765)")) > 2, 30)
        conf = (own.folder / "slurm.conf").read_text()
        ports = [
            int(line.partition("Port=")[2].split()[0])
            for line in conf.splitlines()
            if line.startswith(("SlurmctldPort", "NodeName"))
        ]
        assert len(ports) == 2
        assert all(map(is_listened_to, ports))
        raise ZeroDivisionError
    assert not own.folder.exists()
    # What was killed may take a moment to be gone.
    assert until(lambda: processes_with(str(own.folder)) == [], 30)
    assert until(lambda: processes_with("sleep(98765)") == [], 30)
    assert not any(map(is_listened_to, ports))
