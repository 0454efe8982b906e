"""Jobs in which something goes wrong, seen from outside: what each rank said, how it ended."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests import measured
from tests import ranks as _preloaded  # noqa: F401  what the fork server has imported

ROOT = Path(__file__).parents[2]
FAULTY_STEP = 3
STAMP = "fault at "
# The ranks that are not at fault have this long to end by themselves; then they are killed.
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended: its exit code (negative: the signal), and its standard error."""

    exit_code: int
    said: str

    @property
    def last_error(self) -> str:
        """The last line that names an exception of ours."""
        lines = [line for line in self.said.splitlines() if "lightning_gradsched.errors." in line]
        return lines[-1] if lines else self.said


def kill_itself(_grad: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stamp_fault() -> None:
    print(f"{STAMP}{time.time()}", file=sys.stderr, flush=True)


def record_end(said: Sequence[str], rank_at_fault: int) -> None:
    """Now that the ranks have ended: what another rank than the one at fault said last, and when.

    ``train`` saves nothing, so all of its steps are lost.
    """
    stamp = next(line for line in said[rank_at_fault].splitlines() if line.startswith(STAMP))
    other = next(text for rank, text in enumerate(said) if rank != rank_at_fault)
    message = Ended(1, other).last_error.partition("lightning_gradsched.errors.")[2]
    measured.record(message, time.time() - float(stamp.removeprefix(STAMP)), FAULTY_STEP)


def go_wrong(fault: str, net: nn.Sequential) -> None:
    stamp_fault()
    if fault == "kill":
        kill_itself(torch.empty(0))
    elif fault == "kill_in_backward":
        net[1].weight.register_hook(kill_itself)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(LIMIT_S)
    elif fault == "interrupt":
        # What a shell runs in the background begins with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(LIMIT_S)
    elif fault == "raise":
        raise ZeroDivisionError("no such luck")


def train(fault: str, rank_at_fault: int, stall_timeout_s: float) -> None:
    """One rank; its number, the ranks' count and the store's address are in the environment."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    is_at_fault = dist.get_rank() == rank_at_fault
    if is_at_fault and fault == "absent":
        stamp_fault()
        time.sleep(LIMIT_S)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    config = GradSchedConfig(planner="single", stall_timeout_s=stall_timeout_s)
    scheduler = GradientScheduler(net, config)
    for step in range(10_000):
        if is_at_fault and step == FAULTY_STEP:
            go_wrong(fault, net)
        net.zero_grad()
        net(torch.ones(2, 4)).square().sum().backward()
        if step == FAULTY_STEP:
            print("past the faulty step", file=sys.stderr, flush=True)
        if fault == "link":
            time.sleep(0.05)
    scheduler.detach()


def run_forked(n_ranks: int, folder: Path, *job: Any) -> list[Ended]:
    """``train(*job)`` in forks of a warm process: quick to start, but without Python's own end."""
    port = free_port()
    logs = [folder / f"rank{rank}.log" for rank in range(n_ranks)]
    context = mp.get_context("forkserver")
    processes = []
    for rank, log in enumerate(logs):
        args = (environment(rank, n_ranks, port), str(log), job)
        processes.append(context.Process(target=_forked, args=args, daemon=True))
        processes[-1].start()
    _, rank_at_fault, *_ = job
    for rank, process in enumerate(processes):
        if rank != rank_at_fault:
            process.join(LIMIT_S)
    record_end([log.read_text() for log in logs], rank_at_fault)
    for process in processes:
        process.kill()
        process.join()
    codes = [process.exitcode or 0 for process in processes]
    return [Ended(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def _forked(env: dict[str, str], log: str, job: tuple[Any, ...]) -> None:
    os.environ.update(env)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    train(*job)


def launch(
    rank: int,
    n_ranks: int,
    port: int,
    log: Path,
    *job: Any,
    host: str = "127.0.0.1",
    prefix: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """``train(*job)`` as a program of its own; ``prefix``: the command that starts it."""
    command = [*prefix, sys.executable, "-m", __name__, *map(str, job)]
    env = {**os.environ, **environment(rank, n_ranks, port), "MASTER_ADDR": host}
    with open(log, "w") as file:
        return subprocess.Popen(command, env=env, cwd=ROOT, stderr=file)


def environment(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
