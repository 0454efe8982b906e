"""Whole programs: killed and restarted by torchrun, and what is left after any kind of end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from lightning_gradsched import checkpoint_file
from lightning_gradsched.preemption import EXIT_CODE
from tests import measured
from tests.survival.jobs import BATCH_SIZE, N_SAMPLES, epoch_order

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# On a machine that many share; alone, a job takes ten seconds.
LIMIT_S = 400.0
JOB = ["-m", "tests.survival.jobs"]
KILL, TERM, INT = int(signal.SIGKILL), int(signal.SIGTERM), int(signal.SIGINT)


def run(
    folder: Path, options: dict[str, Any], launcher: Sequence[str] = (), **environ: str
) -> tuple[int, str]:
    """Exit code and output of the job; none of the processes that it started is left."""
    mark = f"SURVIVAL_JOB={uuid4().hex}"
    name, _, value = mark.partition("=")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", name: value, **environ}
    command = [sys.executable, *launcher, *JOB, str(folder), json.dumps(options)]
    log = folder / "said.log"
    with open(log, "w") as file:
        program = subprocess.Popen(command, env=env, cwd=ROOT, stdout=file, stderr=file)
    try:
        code = program.wait(LIMIT_S)
        assert_no_process_is_left(mark)
    finally:
        for pid in marked(mark):
            os.kill(pid, KILL)
        program.wait()
    return code, log.read_text()


def marked(mark: str) -> list[int]:
    """The processes that run with ``mark`` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # it has ended meanwhile, or is not ours
                continue
            if mark.encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


def assert_no_process_is_left(mark: str) -> None:
    deadline = time.monotonic() + 60
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []


def torchrun(n_ranks: int, restarts: int) -> list[str]:
    return [
        *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"),
        *(f"--max-restarts={restarts}", "--monitor-interval=0.2"),
    ]


def seen(folder: Path, rank: int, attempt: int) -> Any:
    return json.loads((folder / f"rank{rank}_attempt{attempt}.json").read_text())


def test_torchrun_restarts_a_job_whose_rank_was_killed(tmp_path: Path) -> None:
    """From the last checkpoint, and on as if nothing had happened: bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    options = {"trainer": {"max_epochs": 2}}
    code, said = run(whole, options, torchrun(2, 0))
    assert code == 0, said
    options |= {"trouble": [KILL, 6, 1], "awaits_save": True}
    # Else the restarted ranks read addresses of those before them: pytorch/pytorch#135712.
    code, said = run(killed, options, torchrun(2, 1), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert code == 0, said
    for rank in range(2):
        rest = seen(killed, rank, 1)["losses"]
        first_step = rest[0][1]
        assert first_step in (2, 4), "in the 6th batch, after 5 steps; every second is saved"
        assert rest == seen(whole, rank, 0)["losses"][first_step:]
    pairs = zip(weights(whole), weights(killed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    restarted_s = (killed / "rank0_attempt1.json").stat().st_mtime
    fault_s = float((killed / "fault_at").read_text())
    message = next(
        line for line in said.splitlines() if "Signal 9" in line or "exitcode: -9" in line
    )
    measured.record(message.strip(), restarted_s - fault_s, 5 - first_step)


def test_where_a_node_is_lost_the_others_go_on(tmp_path: Path) -> None:
    """Elastic torchrun: on one node less, from the last checkpoint, each sample once an epoch."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = {"trainer": {"max_epochs": 2}}
    doomed = options | {"trouble": [-KILL, 6, None], "awaits_save": True}
    with open(tmp_path / "lost.log", "w") as log:
        lost = subprocess.Popen(
            [sys.executable, *node(port, is_host=False), *JOB, str(tmp_path), json.dumps(doomed)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    code, said = run(
        tmp_path, options, node(port, is_host=True), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    )
    assert code == 0, said
    assert lost.wait(LIMIT_S) == -KILL
    rest = seen(tmp_path, 0, 1)
    assert rest["world_size"] == 1
    n_done = rest["losses"][0][1]
    assert n_done in (2, 4), "in the 6th batch, after 5 steps; every second is saved"
    before = [[0, i] for i in epoch_order(0)[: n_done * 2 * BATCH_SIZE]]
    assert sorted(before + rest["seen"]) == [[e, i] for e in range(2) for i in range(N_SAMPLES)]
    restarted_s = (tmp_path / "rank0_attempt1.json").stat().st_mtime
    message = next(line for line in said.splitlines() if "ReductionError: rank" in line)
    fault_s = float((tmp_path / "fault_at").read_text())
    measured.record(message.strip(), restarted_s - fault_s, 5 - n_done)


def node(port: int, is_host: bool) -> list[str]:
    """The launcher of one of two nodes; one is enough to go on.

    One that starts late, or is held up for a while, shall not be taken for one that is lost.
    """
    conf = f"is_host={is_host},join_timeout=120,last_call_timeout=10,keep_alive_interval=3"
    return [
        *("-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=2"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=survival"),
        *(f"--rdzv-conf={conf}", "--monitor-interval=0.2"),
    ]


def weights(folder: Path) -> list[torch.Tensor]:
    return list(torch.load(folder / "weights.pt", weights_only=True).values())


ENDS = {
    "normal": ({}, 0, "`max_epochs=2` reached"),
    "exception": ({"trouble": [0, 3, 0]}, 1, "ZeroDivisionError: no such luck"),
    "exception on one rank": ({"trouble": [0, 3, 1]}, None, "ZeroDivisionError: no such luck"),
    "SIGTERM": ({"trouble": [TERM, 3, 0]}, EXIT_CODE, "preempted by SIGTERM to rank 0: stopped"),
    # Who sees it first: Lightning's launcher, or the other rank's wait for it.
    "SIGKILL of one rank": (
        {"trouble": [KILL, 3, 1]},
        None,
        "terminated with code -9|Another rank has failed",
    ),
    "Ctrl-C": ({"trouble": [INT, 3, 0]}, 1, "Detected KeyboardInterrupt"),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_after_any_end(end: str, tmp_path: Path) -> None:
    """Two ranks, started by Lightning; no process, half-written file or shared memory stays."""
    extra, expected, either = ENDS[end]
    shared = set(os.listdir("/dev/shm"))
    code, said = run(tmp_path, {"devices": 2, "trainer": {"max_epochs": 2}, **extra})
    if expected is None:
        assert code != 0, said
    else:
        assert code == expected, said
    words = next((words for words in either.split("|") if words in said), None)
    assert words is not None, said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.name.startswith(".")] == []
    for path in files:
        if path.suffix == ".ckpt":
            assert checkpoint_file.fault_of(path) == ""
    # torch_PID_...: what processes that live have is another test's.
    new = [n for n in set(os.listdir("/dev/shm")) - shared if n.startswith("torch_")]
    assert [name for name in new if not Path("/proc", name.split("_")[1]).exists()] == []
    record(end, tmp_path, said, words)


def record(end: str, folder: Path, said: str, words: str) -> None:
    stamp = folder / "fault_at"
    if not stamp.exists():
        return
    message = next(line for line in reversed(said.splitlines()) if words in line)
    saved = [checkpoint_file.read(path)["global_step"] for path in folder.rglob("*.ckpt")]
    ended_s = (folder / "said.log").stat().st_mtime
    n_done = 3 if end == "SIGTERM" else 2
    measured.record(message, ended_s - float(stamp.read_text()), n_done - max(saved, default=0))
