"""A look at the launch, on every rank, before anything is built: `docs/clusters.md`.

The ranks that torchrun or ``srun`` has started meet at rank 0 over plain connections, before there
is a process group, and tell each other what they expect and what they are. Either all go on, with
one run folder and a free port, or rank 0 prints one report and all end.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from lightning_gradsched.errors import ProcessGroupError
from lightning_gradsched.preflight.doorbell import Doorbell, Interface, interface_of
from lightning_gradsched.preflight.facts import facts_of
from lightning_gradsched.preflight.guest import meet
from lightning_gradsched.preflight.host import Host, Verdict, answer_of
from lightning_gradsched.preflight.ports import group_port, listen, port_problem
from lightning_gradsched.runtime.topology import (
    Launch,
    is_interactive,
    launch_of,
    meeting_ports,
    token_of,
)

TIMEOUT_S = 120.0


class Agreement(NamedTuple):
    """What the ranks have agreed on: rank 0's run folder, and how many they are."""

    run_dir: str | None
    n_ranks: int
    n_nodes: int


_agreed: dict[str, Agreement] = {}


def preflight(
    *,
    run_dir: str | None = None,
    devices: object = None,
    num_nodes: int | None = None,
    accelerator: str = "auto",
    timeout_s: float = TIMEOUT_S,
) -> Agreement | None:
    """Check the launch with all other ranks; what they agree on, None where no launcher is at work.

    All ranks must call it, once in a launch; later calls give the first one's answer. Under
    ``srun``, MASTER_ADDR and a free MASTER_PORT are put into the environment, unless they are set.

    Args:
        run_dir: where the program will write; a bucket's URL is not tried.
        devices: ranks expected on each node, as the Trainer's ``devices``; None or ``"auto"``: any.
        num_nodes: nodes expected; None: any.
        accelerator: the Trainer's; tells gloo from NCCL.
        timeout_s: the longest wait for a rank.

    Raises:
        SystemExit: something is wrong; rank 0 has printed what.
        ProcessGroupError: on a rank that is alone, or cannot find rank 0.
    """
    launch = launch_of(os.environ)
    if launch is None or is_interactive(os.environ):
        _check_batch_script(os.environ)
        return None
    token = token_of(os.environ)
    if token not in _agreed:
        expected = Expected(
            run_dir=None if run_dir is None or "://" in run_dir else run_dir,
            devices=n_devices(devices),
            n_nodes=num_nodes,
            backend=_backend(accelerator),
        )
        verdict = _meet(launch, token, expected, timeout_s)
        if verdict.port is not None:
            os.environ["MASTER_ADDR"] = launch.address
            os.environ["MASTER_PORT"] = str(verdict.port)
        _agreed[token] = Agreement(verdict.run_dir, verdict.n_ranks, verdict.n_nodes)
    return _agreed[token]


def share_problem(problem: str | None, *, stage: str, timeout_s: float = TIMEOUT_S) -> None:
    """End all ranks, with one report, if one of them has a ``problem``; they would wait for it.

    For work that ranks do by themselves before they form a process group, such as preparing data.
    All ranks that torchrun or ``srun`` has started must call it, once a ``stage``; without either
    it does nothing, and the problem is the caller's.

    Raises:
        SystemExit: a rank had a problem; rank 0 has printed it.
        ProcessGroupError: on a rank that cannot find rank 0.
    """
    launch = launch_of(os.environ)
    if launch is not None and not is_interactive(os.environ):
        expected = Expected(problem=problem)
        _meet(launch, f"{token_of(os.environ)}-{stage}", expected, timeout_s)


class Expected(NamedTuple):
    """What a rank expects of the launch; None: nothing. ``problem`` is what it has met itself."""

    run_dir: str | None = None
    devices: int | None = None
    n_nodes: int | None = None
    backend: str | None = None
    problem: str | None = None


def _meet(launch: Launch, token: str, expected: Expected, timeout_s: float) -> Verdict:
    interface = _interface(expected.backend)
    answer = answer_of(token, socket.gethostname(), os.getpid())
    bell = None if interface.address is None else Doorbell(interface.address, answer)
    host, marker = None, Marker(expected.run_dir)
    problems = (interface.problem, port_problem(launch), expected.problem)
    try:
        facts = facts_of(
            launch,
            run_dir=expected.run_dir,
            devices=expected.devices,
            n_nodes=expected.n_nodes,
            address=None if bell is None else bell.address,
            interface=interface.why,
            problems=filter(None, problems),
        )
        ports = meeting_ports(token)
        if launch.rank == 0 and (server := listen(launch.address, ports, token)) is not None:
            host = Host(server, token, marker.make, group_port(token), timeout_s)
            ports = [server.getsockname()[1]]
        verdict = meet(launch.address, ports, token, facts, timeout_s)
    finally:
        if host is not None:
            host.close()
        if bell is not None:
            bell.close()
        marker.remove()
    if verdict.report:
        raise SystemExit(1)
    return verdict


def _interface(backend: str | None) -> Interface:
    return Interface(None, "") if backend is None else interface_of(os.environ, backend)


class Marker:
    """A file by which other nodes see that they share the run folder with rank 0."""

    def __init__(self, run_dir: str | None) -> None:
        self._folder = None if run_dir is None else Path(run_dir).absolute()
        self._path: Path | None = None

    def make(self) -> tuple[str | None, str]:
        """The file's name, None where there is no folder; and why it could not be made."""
        if self._folder is None:
            return None, ""
        path = self._folder / f".gradsched-preflight-{uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            return None, str(error)
        self._path = path
        return path.name, ""

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def n_devices(devices: object) -> int | None:
    """Ranks on each node by the Trainer's ``devices``; None where that leaves it open.

    >>> n_devices(2), n_devices("2"), n_devices([0, 1, 3]), n_devices("auto"), n_devices(-1)
    (2, 2, 3, None, None)
    """
    if isinstance(devices, str):
        devices = int(devices) if devices.isdigit() else None
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return len(devices) if isinstance(devices, Sequence) else None


def _backend(accelerator: str) -> str:
    torch = sys.modules.get("torch")  # not loaded for this alone
    on_gpu = torch is not None and torch.cuda.is_available()
    if accelerator == "auto":
        return "nccl" if on_gpu else "gloo"
    return "gloo" if accelerator == "cpu" else "nccl"


def _check_batch_script(environ: Mapping[str, str]) -> None:
    """Lightning would take the script for one of its ranks, and wait for the others for ever."""
    n_tasks = environ.get("SLURM_NTASKS", "1")
    if n_tasks == "1" or "SLURM_STEP_ID" in environ or is_interactive(environ):
        return
    raise ProcessGroupError(
        f"expected one of the {n_tasks} ranks of SLURM job {environ.get('SLURM_JOB_ID')}, got the"
        " job script itself: write srun before the command, srun python -m ..."
    )
