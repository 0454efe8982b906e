"""`gradsched doctor`: what it finds, plans and refuses, alone and on real ranks."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gradsched import cli
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.runtime.topology import TORCHRUN_VARIABLES

GRADSCHED = Path(sys.executable).parent / "gradsched"
CHECKOUT = Path(__file__).resolve().parent.parent


def test_doctor_alone_tells_of_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_launchers(monkeypatch)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"lightning-gradsched {cli.__version__}" in out
    assert "not measured: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set" in out


def test_doctor_on_two_ranks_measures_and_plans(tmp_path: Path) -> None:
    params = tuple(ParamProfile(f"p{i}", 1 << 20, ready_s=0.01 * (i + 1)) for i in range(8))
    path = tmp_path / "profile.json"
    path.write_text(BackwardProfile(params, forward_s=0.05, backward_s=0.08).to_json())
    command = ["--standalone", "--nproc-per-node", "2", "--no-python", str(GRADSCHED), "doctor"]
    result = subprocess.run(
        [GRADSCHED.with_name("torchrun"), *command, "--profile", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "ranks      2, nodes 1, at most 2 ranks a node, backend gloo" in result.stdout
    assert result.stdout.count("algbw") == 3
    assert "plans for 8 parameters, 8.0 MiB, backward 80.0 ms" in result.stdout
    assert "  ddp " in result.stdout
    assert result.stdout.count("advice ") == 1, "rank 0 alone speaks"


def test_doctor_bounds_its_wait_for_ranks_that_do_not_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    values = ("1", "2", "127.0.0.1", port)
    for name, value in zip(TORCHRUN_VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    assert cli.main(["doctor", "--timeout-s", "2"]) == 2
    assert f"rank 1 of 2 could not join at 127.0.0.1:{port} within 2 s" in capsys.readouterr().err
