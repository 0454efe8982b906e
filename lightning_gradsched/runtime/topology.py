"""Which ranks share a node, and who a process is among them: read off the environment."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_gradsched.errors import ProcessGroupError

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Below the ports that Linux gives out by itself (32768), above those that Lightning derives.
SLURM_PORTS = range(25_000, 32_000)


class Place(NamedTuple):
    """Where one rank runs: its host's name, and the node by its launcher's count, if that tells."""

    host: str
    launcher: str = ""
    node: str = ""


def place_of(environ: Mapping[str, str], host: str) -> Place:
    """The place of the process with this environment.

    The launcher knows better than the host's name: containers on two nodes may have the same name,
    and a machine for tests may hold several nodes. ``srun torchrun`` counts by torchrun's agents.

    >>> place_of({"LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}, "box")
    Place(host='box', launcher='torchrun', node='1')
    >>> place_of({"SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURMD_NODENAME": "n2"}, "box")
    Place(host='box', launcher='slurm', node='n2')
    """
    if "LOCAL_WORLD_SIZE" in environ and "GROUP_RANK" in environ:
        return Place(host, "torchrun", environ["GROUP_RANK"])
    # Without a step these are the batch script's own, the same for whatever it starts elsewhere.
    if "SLURM_STEP_ID" in environ and "SLURM_NODEID" in environ:
        return Place(host, "slurm", environ.get("SLURMD_NODENAME", environ["SLURM_NODEID"]))
    return Place(host)


def nodes_of(places: Sequence[Place]) -> list[int]:
    """The node of each rank, numbered as they are met; by host name unless one launcher tells all.

    >>> nodes_of([Place("a"), Place("b"), Place("a")])
    [0, 1, 0]
    """
    launchers = {place.launcher for place in places}
    told = len(launchers) == 1 and "" not in launchers
    names = [place.node if told else place.host for place in places]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


class Launch(NamedTuple):
    """How a process joins the others: its numbers, and where rank 0 listens."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int


def launch_of(environ: Mapping[str, str]) -> Launch | None:
    """What torchrun or ``srun`` says of this process; None where it was started alone.

    Under ``srun`` rank 0's node is the first of the step, and the port comes from the job and step,
    so that two jobs on a node rarely meet; MASTER_ADDR and MASTER_PORT go before both.

    Raises:
        ProcessGroupError: a variable that should hold a number does not.
    """
    try:
        if all(name in environ for name in TORCHRUN_VARIABLES):
            return _torchrun(environ)
        return _srun(environ) if "SLURM_STEP_NUM_TASKS" in environ else None
    except (KeyError, ValueError) as error:
        raise ProcessGroupError(
            "expected the launcher's variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_PORT, or"
            f" SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_JOB_ID with whole numbers, got {error!r}"
        ) from error


def is_interactive(environ: Mapping[str, str]) -> bool:
    """Whether this is a shell in a SLURM job, in which Lightning starts its ranks by itself."""
    is_one = environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    return is_one and environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list.

    >>> first_host("gpu[07-12,30],login1"), first_host("rack[2,4]n[1-8]"), first_host("a,b")
    ('gpu07', 'rack2n1', 'a')
    """
    first = re.split(r",(?![^\[]*\])", nodelist)[0]
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first)


def token_of(environ: Mapping[str, str]) -> str:
    """A name that all processes of one launch share, and no other launch has.

    A restarted or requeued launch has another one than before.
    """
    if all(name in environ for name in TORCHRUN_VARIABLES):
        names = ["TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"]
    else:
        names = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"]
    return "-".join(environ.get(name, "0") for name in names)


def meeting_ports(token: str) -> list[int]:
    """Where a launch's ranks look for rank 0, in this order: it takes the first that is free.

    Two launches may share ports, for there are more launches than ports: their ranks tell each
    other by their tokens.

    >>> meeting_ports("4711-0-0")[:2], meeting_ports("14711-0-0")[:2]
    ([25244, 26241], [29594, 30591])
    """
    start = zlib.crc32(token.encode())
    return [SLURM_PORTS[(start + 997 * i) % len(SLURM_PORTS)] for i in range(8)]


def _torchrun(environ: Mapping[str, str]) -> Launch:
    return Launch(
        rank=int(environ["RANK"]),
        world_size=int(environ["WORLD_SIZE"]),
        local_rank=int(environ.get("LOCAL_RANK", "0")),
        address=environ["MASTER_ADDR"],
        port=int(environ["MASTER_PORT"]),
    )


def _srun(environ: Mapping[str, str]) -> Launch:
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]
    # Steps of a job may run side by side, and jobs of neighbouring numbers share a node.
    spread = 10 * int(environ["SLURM_JOB_ID"]) + int(environ.get("SLURM_STEP_ID", "0"))
    return Launch(
        rank=int(environ["SLURM_PROCID"]),
        world_size=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        address=environ.get("MASTER_ADDR") or first_host(nodelist),
        port=int(environ.get("MASTER_PORT") or SLURM_PORTS[spread % len(SLURM_PORTS)]),
    )
