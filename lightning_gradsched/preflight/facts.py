"""What one rank knows of itself before it meets the others; gathered without torch."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning_gradsched
from lightning_gradsched.runtime.topology import Launch, place_of

PACKAGES = ("torch", "lightning", "pytorch-lightning", "numpy")


@dataclass(frozen=True)
class Facts:
    """One rank's own account; travels as JSON.

    Attributes:
        node: the node by its launcher's count, else the host's name.
        devices: ranks that the program expects on this node; None: as many as there are.
        n_nodes: nodes that the program expects; None: as many as there are.
        versions: version by package, and ``python``.
        checkouts: git commit by what lies there, where it is a checkout.
        address: where the backend will tell the other ranks to reach this one, as host and port;
            None where there is nothing to try. ``interface`` says how that address was chosen.
        problems: what this rank has found wrong by itself.
        clock_ahead_s: of rank 0's clock, once they have met.
    """

    rank: int
    world_size: int
    local_rank: int
    host: str
    node: str
    pid: int
    run_dir: str | None = None
    devices: int | None = None
    n_nodes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    checkouts: Mapping[str, str] = field(default_factory=dict)
    address: tuple[str, int] | None = None
    interface: str = ""
    problems: tuple[str, ...] = ()
    clock_ahead_s: float = 0.0

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.node}"


def facts_of(
    launch: Launch,
    *,
    run_dir: str | None,
    devices: int | None,
    n_nodes: int | None,
    address: tuple[str, int] | None,
    interface: str,
    problems: Iterable[str],
) -> Facts:
    """This process's."""
    place = place_of(os.environ, socket.gethostname())
    # torchrun counts nodes; a host's name tells more where both are at hand.
    node = place.node if place.launcher == "slurm" else f"{place.host}{_agent(place.node)}"
    return Facts(
        rank=launch.rank,
        world_size=launch.world_size,
        local_rank=launch.local_rank,
        host=place.host,
        node=node,
        pid=os.getpid(),
        run_dir=None if run_dir is None else str(Path(run_dir).absolute()),
        devices=devices,
        n_nodes=n_nodes,
        versions=versions(),
        checkouts=checkouts(),
        address=address,
        interface=interface,
        problems=tuple(problems),
    )


def _agent(number: str) -> str:
    return f" (agent {number})" if number else ""


def versions() -> dict[str, str]:
    """Of Python, this package and those that a step's numbers depend on."""
    found = {"python": platform.python_version()}
    found["lightning-gradsched"] = lightning_gradsched.__version__
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def checkouts() -> dict[str, str]:
    """The git commits of the working directory and of this package; none outside a checkout."""
    places = {
        "working directory": Path.cwd(),
        "lightning_gradsched": Path(lightning_gradsched.__file__).parent,
    }
    commits = {what: commit_of(folder) for what, folder in places.items()}
    return {what: commit for what, commit in commits.items() if commit is not None}


def commit_of(folder: Path) -> str | None:
    """The commit that the checkout around ``folder`` has checked out, read off its files.

    Compute nodes often have no git, and git refuses a checkout that belongs to somebody else.
    """
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        try:
            if git.is_dir():
                return _head(git, git)
            if git.is_file():  # a worktree or submodule names its folder
                own = parent / git.read_text().removeprefix("gitdir:").strip()
                common = own / "commondir"
                shared = own / common.read_text().strip() if common.exists() else own
                return _head(own, shared)
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _head(own: Path, shared: Path) -> str | None:
    head = (own / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    ref = head.removeprefix("ref:").strip()
    for folder in (own, shared):
        if (folder / ref).is_file():
            return (folder / ref).read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), None)
