"""Whole programs: an error or Ctrl-C on one rank, and a link that goes down."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import measured
from tests.faults.jobs import FAULTY_STEP, LIMIT_S, PAST, Ended, free_port, launch, record_end
from tests.ranks import names_silent

pytestmark = pytest.mark.slow


def end_all(programs: list[subprocess.Popen[bytes]]) -> None:
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.parametrize(
    ("fault", "reason", "exit_code"),
    [
        ("raise", "its process ended after ZeroDivisionError: no such luck", 1),
        ("interrupt", "its process ended after KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_the_others_learn_why_a_rank_ended(
    fault: str, reason: str, exit_code: int, tmp_path: Path
) -> None:
    port = free_port()
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    programs = [launch(rank, 2, port, log, fault, 1, 20.0) for rank, log in enumerate(logs)]
    try:
        codes = [program.wait(LIMIT_S) for program in programs]
    finally:
        end_all(programs)
    record_end([log.read_text() for log in logs], 1)
    said = logs[0].read_text()
    assert codes == [1, exit_code], said
    assert "errors.ReductionError: rank 0 waited" in said
    assert f"Rank 1 has ended: {reason}" in said


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Three network namespaces on a bridge; the address of number i ends in i + 1."""
    prefix = f"gf{os.getpid()}"  # not that of a cluster of this process
    names = [f"{prefix}n{i}" for i in range(3)]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    try:
        ip("link", "add", f"{prefix}b", "type", "bridge")
        ip("link", "set", f"{prefix}b", "up")
        for i, name in enumerate(names):
            if i > 0:
                ip("netns", "add", name)
            ip("link", "add", f"{prefix}v{i}", "type", "veth", "peer", "eth0", "netns", name)
            ip("link", "set", f"{prefix}v{i}", "master", f"{prefix}b", "up")
            ip("-n", name, "addr", "add", f"10.213.97.{i + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for i in range(len(names)):
            # A namespace goes when its last socket does; its link need not wait for that.
            subprocess.run(["ip", "link", "del", f"{prefix}v{i}"], check=False, capture_output=True)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{prefix}b"], check=False, capture_output=True)


def test_a_rank_whose_link_goes_down_is_named(
    hosts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    logs = [tmp_path / f"rank{rank}.log" for rank in range(3)]
    programs = [
        launch(
            *(rank, 3, 29500, logs[rank], "link", 2, 12.0),
            host="10.213.97.1",
            prefix=("ip", "netns", "exec", name),
        )
        for rank, name in enumerate(hosts)
    ]
    try:
        wait_until_all_have_said(PAST, logs, programs)
        ip("link", "set", hosts[2].replace("n2", "v2"), "down")
        down_s = time.monotonic()
        codes = [program.wait(LIMIT_S) for program in programs]
        lasted_s = time.monotonic() - down_s
    finally:
        end_all(programs)
    said = [log.read_text() for log in logs]
    measured.record(Ended(1, said[0]).last_error, lasted_s, FAULTY_STEP)
    assert codes == [1, 1, 1], said
    for text in said[:2]:
        assert names_silent(2, text[: text.index("Traceback")]), "the warning"
        assert names_silent(2, text[text.index("errors.ReductionError") :])
    assert "hosts, does not answer: " in said[2], "it reaches nobody: not the store either"
    assert "or this rank's own link" in said[2]


def wait_until_all_have_said(
    what: str, logs: list[Path], programs: list[subprocess.Popen[bytes]]
) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not all(what in log.read_text() for log in logs):
        ended = [program.poll() for program in programs]
        assert time.monotonic() < deadline, [log.read_text() for log in logs]
        assert ended == [None] * len(programs), [log.read_text() for log in logs]
        time.sleep(0.1)
