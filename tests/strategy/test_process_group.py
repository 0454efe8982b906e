"""A process group that cannot form: an error that names the address, in bounded time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FIT = """
import lightning.pytorch as pl
from lightning_gradsched import GradSchedStrategy
from tests.strategy.modules import Regression

pl.Trainer(strategy=GradSchedStrategy(stall_timeout_s=3), accelerator="cpu", devices=2,
           max_epochs=1, logger=False, enable_checkpointing=False).fit(Regression())
"""


def fit_as(local_rank: int, port: int) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIT],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )


def listening() -> socket.socket:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


def test_a_port_in_use_is_named() -> None:
    with listening() as server:
        port = server.getsockname()[1]
        result = fit_as(0, port)
    assert result.returncode != 0
    assert f"rank 0 could not form the process group of 2 ranks at 127.0.0.1:{port}" in (
        result.stderr
    )


def test_a_first_rank_that_never_comes_is_named_after_the_stall_timeout() -> None:
    with listening() as server:
        port = server.getsockname()[1]
    result = fit_as(1, port)  # nobody listens there any more
    assert result.returncode != 0
    assert f"rank 1 could not form the process group of 2 ranks at 127.0.0.1:{port}" in (
        result.stderr
    )
    assert "within 3 s" in result.stderr
