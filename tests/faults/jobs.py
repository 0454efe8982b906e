"""Jobs in which something goes wrong, seen from outside: what each rank said, how it ended."""

from __future__ import annotations

import atexit
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime import watchdog
from lightning_gradsched.runtime.scatter import ScatterTransport
from tests import measured, modes
from tests.ranks import tell, until_told  # the fork server has imported it

ROOT = Path(__file__).parents[2]
FAULTY_STEP = 3
STAMP = "fault at "
PAST = "past the faulty step"
# What a rank has sent shall come, before it dies.
ON_ITS_WAY_S = 2.0
# What a rank says as its last word shall be written, however late its thread runs.
GOODBYE_S = 10.0
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


def go_wrong(fault: str, net: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    """At once, or ``_in_backward`` before its last gradient, ``_in_step``, ``_before_means``.

    If not at once, then when the others have come as far: see ``meet_fault``.
    """
    kind, _, where = fault.partition("_")

    def strike_late(*_: Any) -> None:
        wait_for_others("meets the fault", dist.get_rank())
        time.sleep(ON_ITS_WAY_S)
        strike(kind)

    if where == "in_backward":
        net[0].weight.register_hook(strike_late)
    elif where == "in_step":
        optimizer.register_step_pre_hook(strike_late)
    elif where == "before_means":
        ScatterTransport.send_means = strike_late  # type: ignore[method-assign, assignment]
    else:
        strike(kind)


def meet_fault(fault: str, net: nn.Sequential) -> None:
    """On a rank not at fault, in the faulty step: tell when all is sent but the last gradient.

    Where the fault strikes after backward, ``train_from_here`` tells.
    """
    if fault.endswith("_in_backward"):
        net[0].weight.register_hook(lambda _: tell_of_this_rank("meets the fault"))


def wait_for_others(what: str, rank_at_fault: int) -> None:
    """Until each rank that is not at fault has told so, as ``tell_of_this_rank`` does."""
    for rank in set(range(dist.get_world_size())) - {dist.get_rank(), rank_at_fault}:
        until_told(f"{what}/{rank}")


def tell_of_this_rank(what: str) -> None:
    tell(f"{what}/{dist.get_rank()}")


@contextmanager
def with_store_for_all(rank_at_fault: int) -> Iterator[None]:
    """Rank 0 takes the store with it: if an error ends it, then once the others have theirs."""
    try:
        yield
    except ReductionError:
        if rank_at_fault not in (0, dist.get_rank()):
            tell_of_this_rank("knows")
            if dist.get_rank() == 0:
                with suppress(dist.DistStoreError):  # a rank ended otherwise; its log says how
                    wait_for_others("knows", rank_at_fault)
        raise


def strike(fault: str) -> None:
    stamp_fault()
    if fault in ("raise", "interrupt"):
        watchdog.LONGEST_GOODBYE_S = GOODBYE_S
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
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


def train(fault: str, rank_at_fault: int, stall_timeout_s: float, mode: str = "") -> None:
    """One rank; its number, the ranks' count and the store's address are in the environment.

    ``mode``: one of ``tests.modes``, then each parameter travels by itself; empty for none.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.Adam(net.parameters())
    # Processes start at unlike times, which shall be no part of a wait that has a limit.
    dist.barrier()
    with with_store_for_all(rank_at_fault):
        train_from_here(net, optimizer, fault, rank_at_fault, stall_timeout_s, mode)


def train_from_here(
    net: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    fault: str,
    rank_at_fault: int,
    stall_timeout_s: float,
    mode: str,
) -> None:
    is_at_fault = dist.get_rank() == rank_at_fault
    if is_at_fault and fault == "absent":
        stamp_fault()
        time.sleep(LIMIT_S)
    settings = modes.MODES[mode] if mode else {}
    config = GradSchedConfig(
        planner="per_tensor" if mode else "single", stall_timeout_s=stall_timeout_s, **settings
    )
    scheduler = GradientScheduler(net, config)
    modes.attach(scheduler, optimizer, settings)
    for step in range(10_000):
        if step == FAULTY_STEP and is_at_fault:
            go_wrong(fault, net, optimizer)
        elif step == FAULTY_STEP:
            meet_fault(fault, net)
        optimizer.zero_grad()
        net(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        if step == FAULTY_STEP:
            print(PAST, file=sys.stderr, flush=True)
            if "_" in fault:
                tell_of_this_rank("meets the fault")
        if fault == "link":
            time.sleep(0.05)
    scheduler.detach()


@dataclass(frozen=True, slots=True)
class Forked:
    """A job that runs."""

    processes: Sequence[Any]
    logs: Sequence[Path]
    rank_at_fault: int

    def ended(self) -> list[Ended]:
        """How each rank has ended, within ``LIMIT_S``; the one at fault is killed."""
        for rank, process in enumerate(self.processes):
            if rank != self.rank_at_fault:
                process.join(LIMIT_S)
        said = [log.read_text() for log in self.logs]
        record_end(said, self.rank_at_fault)
        for process in self.processes:
            process.kill()
            process.join()
        codes = [process.exitcode or 0 for process in self.processes]
        return [Ended(code, text) for code, text in zip(codes, said, strict=True)]


def start_forked(n_ranks: int, folder: Path, *job: Any) -> Forked:
    """``train(*job)`` in forks of a warm process: quick to start."""
    port = free_port()
    logs = [folder / f"rank{rank}.log" for rank in range(n_ranks)]
    context = mp.get_context("forkserver")
    processes = []
    for rank, log in enumerate(logs):
        args = (environment(rank, n_ranks, port), str(log), job)
        processes.append(context.Process(target=_forked, args=args, daemon=True))
        processes[-1].start()
    _, rank_at_fault, *_ = job
    return Forked(processes, logs, rank_at_fault)


def run_forked(n_ranks: int, folder: Path, *job: Any) -> list[Ended]:
    return start_forked(n_ranks, folder, *job).ended()


def _forked(env: dict[str, str], log: str, job: tuple[Any, ...]) -> None:
    os.environ.update(env)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    try:
        train(*job)
    except Exception:
        atexit._run_exitfuncs()  # as at the end of a program, but not of a fork
        raise


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
    train(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
