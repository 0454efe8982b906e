"""Ranks as threads: they find rank 0 past strangers, and every wait ends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_gradsched import preflight as preflight_package
from lightning_gradsched.errors import ProcessGroupError
from lightning_gradsched.preflight import Marker, guest, preflight, share_problem
from lightning_gradsched.preflight.doorbell import Doorbell, interface_of, ring
from lightning_gradsched.preflight.guest import look_at, meet
from lightning_gradsched.preflight.host import LINE_NBYTES, Host, Task, Verdict
from lightning_gradsched.preflight.ports import group_port, listen, why_taken
from lightning_gradsched.runtime.topology import SLURM_PORTS, meeting_ports
from tests.preflight.test_findings import HEALTHY

TOKEN = "4711-0-0"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def meeting(
    server: socket.socket, run_dir: str | None = None, timeout_s: float = 10.0, n_ranks: int = 4
) -> list[Verdict | ProcessGroupError]:
    """What each rank was told by a host at `server`."""
    marker = Marker(run_dir)
    host = Host(server, TOKEN, marker.make, 29_999, timeout_s)
    port = server.getsockname()[1]

    def come(i: int) -> Verdict | ProcessGroupError:
        facts = HEALTHY[i]
        try:
            return meet("127.0.0.1", [port], TOKEN, facts, timeout_s)
        except ProcessGroupError as error:
            return error

    with ThreadPoolExecutor(n_ranks) as pool:
        told = list(pool.map(come, range(n_ranks)))
    host.close()
    marker.remove()
    return told


def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks of these tests listen nowhere."""
    monkeypatch.setattr(guest, "ring", lambda address, token: "")


def test_all_are_told_the_same(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_address(monkeypatch)
    monkeypatch.setattr("tests.preflight.test_meeting.HEALTHY", in_folder(tmp_path))
    told = meeting(server, str(tmp_path))
    assert told == [Verdict("", str(tmp_path), 29_999, n_ranks=4, n_nodes=2)] * 4
    assert list(tmp_path.iterdir()) == []


def in_folder(path: Path) -> list[object]:
    from dataclasses import replace

    return [replace(facts, run_dir=str(path)) for facts in HEALTHY]


@pytest.mark.parametrize(
    "strange",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1, 2]\n",
        b'{"token": "4711-0-0"}\n',
        b"x" * 3 * LINE_NBYTES,
    ],
    ids=["silent", "browser", "list", "no facts", "too long"],
)
def test_strangers_at_the_port_are_left_alone(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch, strange: bytes
) -> None:
    no_address(monkeypatch)
    monkeypatch.setattr(
        "tests.preflight.test_meeting.HEALTHY", [f for f in in_folder(Path("/")) if f]
    )
    with socket.create_connection(server.getsockname()[:2]) as stranger:
        sending = threading.Thread(target=send_quietly, args=(stranger, strange))
        sending.start()
        told = meeting(server)
        sending.join(5)
    assert [verdict.report for verdict in told if isinstance(verdict, Verdict)] == [""] * 4


def send_quietly(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except OSError:
        return  # the host had hung up, as it should


def test_a_rank_that_does_not_come_is_a_finding_after_the_timeout(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    no_address(monkeypatch)
    told = meeting(server, timeout_s=4.0, n_ranks=3)
    assert all(isinstance(v, Verdict) and "rank 3 did not come" in v.report for v in told)
    assert capfd.readouterr().err.count("pre-flight:") == 1


def test_a_guest_passes_silent_and_foreign_hosts_by(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "HELLO_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = socket.create_server(("127.0.0.1", 0))
        foreign = Host(other, "815-0-0", Marker(None).make, None, timeout_s=6.0)
        ports = [each.getsockname()[1] for each in (silent, other, server)]
        host = Host(server, TOKEN, Marker(None).make, None, timeout_s=6.0)
        line, ahead_s = guest._find("127.0.0.1", ports, TOKEN, HEALTHY[1], 6.0)
        assert line._socket.getpeername()[1] == ports[2]
        assert abs(ahead_s) < 1.0
        line.close()
        with pytest.raises(ProcessGroupError) as caught:
            guest._find("127.0.0.1", ports[:2], TOKEN, HEALTHY[1], 0.1)
    assert "rank 1 on n0 expected rank 0 of 4 at 127.0.0.1" in str(caught.value)
    assert "another launch, 815-0-0" in str(caught.value)
    for each in (foreign, host):
        each._thread.join(20)
        assert not each._thread.is_alive()


def test_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "FILE_S", 0.1)
    (tmp_path / "marker").touch()
    assert look_at(Task(str(tmp_path), "marker")).unshared == ""
    assert "lacks what rank 0 wrote" in look_at(Task(str(tmp_path), "other")).unshared
    missing = str(tmp_path / "missing")
    assert "does not exist there" in look_at(Task(missing, "marker")).unshared
    assert "No such file" in guest.why_unwritable(Path(missing))


def test_a_doorbell_answers_to_its_name_alone() -> None:
    bell = Doorbell("127.0.0.1", "job n1 7")
    assert ring(bell.address, "job n1 7") == ""
    assert ring(bell.address, "job n2 9") == "an answer of another process"
    bell.close()
    assert "refused" in ring(bell.address, "job n1 7")


@pytest.mark.parametrize(
    ("environ", "backend", "address", "why"),
    [
        ({"GLOO_SOCKET_IFNAME": "lo"}, "gloo", "127.0.0.1", "GLOO_SOCKET_IFNAME=lo"),
        ({"NCCL_SOCKET_IFNAME": "=lo"}, "nccl", "127.0.0.1", "NCCL_SOCKET_IFNAME==lo"),
        ({"NCCL_SOCKET_IFNAME": "l"}, "nccl", "127.0.0.1", "NCCL_SOCKET_IFNAME=l"),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, "nccl", None, ""),
        ({}, "nccl", None, ""),
    ],
)
def test_the_interface_is_the_backends_own_choice(
    environ: dict[str, str], backend: str, address: str | None, why: str
) -> None:
    assert interface_of(environ, backend)[:2] == (address, why)


def test_a_name_that_is_no_address_of_the_host_gives_the_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no.such.host.invalid")
    chosen = interface_of({}, "gloo")
    assert chosen.address == "127.0.0.1"
    assert "no.such.host.invalid is no address" in chosen.why


def test_an_interface_that_is_not_there_is_a_problem() -> None:
    problem = interface_of({"GLOO_SOCKET_IFNAME": "eth99"}, "gloo").problem
    assert problem.startswith("expected the network interface GLOO_SOCKET_IFNAME=eth99, got ")


def test_rank_0_takes_the_first_free_port_and_a_second_rank_0_becomes_a_guest() -> None:
    ports = meeting_ports(f"test-{os.getpid()}")
    with socket.create_server(("", ports[0])):
        server = listen("127.0.0.1", ports[:2], TOKEN)
        assert server is not None
        assert server.getsockname()[1] == ports[1]
        host = Host(server, TOKEN, Marker(None).make, None, timeout_s=5.0)
        assert listen("127.0.0.1", ports[1:3], TOKEN) is None
        host.close()
    assert listen("192.0.2.99", ports, TOKEN) is None, "another host's"


def test_reserved_ports_are_kept_from_others_and_free_for_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    first, second = group_port(TOKEN), group_port(TOKEN)
    assert first is not None
    assert first != second
    assert {first, second} <= set(SLURM_PORTS)
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", first, 1, is_master=True)
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert "in use" in why_taken(first)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the environment of a step of SLURM's with one rank."""

    def set_up(**changes: str) -> None:
        monkeypatch.setattr(preflight_package, "_agreed", {})
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        environ = {
            "SLURM_JOB_ID": f"{os.getpid()}",
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
        }
        for name, value in (environ | changes).items():
            monkeypatch.setenv(name, value)

    return set_up


def test_preflight_of_one_rank(step: Callable[..., None], tmp_path: Path) -> None:
    step()
    run_dir = tmp_path / "run"
    agreed = preflight(run_dir=str(run_dir), devices=[0], num_nodes=1)
    assert agreed == (str(run_dir), 1, 1)
    assert os.environ["MASTER_ADDR"] == "localhost"
    assert int(os.environ["MASTER_PORT"]) in SLURM_PORTS
    assert preflight(devices=7) is agreed, "once in a launch"
    share_problem(None, stage="data")


def test_a_problem_is_printed_and_ends_the_rank(
    step: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    step()
    with pytest.raises(SystemExit) as caught:
        preflight(devices=2)
    assert caught.value.code == 1
    assert "expected 2 ranks on each node (devices=2), got 1 on 0" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        share_problem("DataFileError: gone", stage="data")
    assert "on rank 0: DataFileError: gone" in capfd.readouterr().err


def test_a_job_script_without_srun_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert preflight() is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(ProcessGroupError, match="expected one of the 4 ranks of SLURM job 12"):
        preflight()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # Lightning starts its ranks by itself
    assert preflight() is None
