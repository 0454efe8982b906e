"""What is wrong with a launch, from what all ranks say of themselves; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from lightning_gradsched.preflight.facts import Facts

# File times, time stamps of logs and the calibration's age are compared between nodes.
MOST_CLOCK_SKEW_S = 5.0

_Value = TypeVar("_Value", int, str)


@dataclass(frozen=True)
class Look:
    """What a rank has found out once it knew the others; empty where it is well.

    ``unwritable``, ``unshared``: why the run folder is no good there; ``unreachable``: why ``peer``
    cannot be reached.
    """

    unwritable: str = ""
    unshared: str = ""
    unreachable: str = ""
    peer: int | None = None


def findings(arrived: Sequence[Facts], looks: Mapping[int, Look], waited_s: float) -> Iterator[str]:
    """Each thing that is wrong, with what was expected, what was found, and what to type next.

    ``arrived`` in order of rank; ``looks`` by index into it.
    """
    for problem, ranks in _problems(arrived).items():
        yield f"on rank{'s' * (len(ranks) > 1)} {ranges(ranks)}: {problem}"
    yield from _numbers(arrived, waited_s)
    yield from _ranks_per_node(arrived)
    yield from _unlike(arrived)
    yield from _clocks(arrived)
    yield from _folders(arrived, looks)
    yield from _routes(arrived, looks)


def _problems(arrived: Iterable[Facts]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for facts in arrived:
        for problem in facts.problems:
            ranks.setdefault(problem, []).append(facts.rank)
    return ranks


def _numbers(arrived: Sequence[Facts], waited_s: float) -> Iterator[str]:
    sizes = _by(arrived, [facts.world_size for facts in arrived])
    if len(sizes) > 1:
        yield (
            f"expected one world size on all ranks, got {_listed(sizes)}: start all of them by one"
            " srun or torchrun, and set no WORLD_SIZE or SLURM_NTASKS in the job script"
        )
    counts = Counter(facts.rank for facts in arrived)
    for rank in sorted(rank for rank, count in counts.items() if count > 1):
        where = [f"{f.node} (pid {f.pid})" for f in arrived if f.rank == rank]
        yield (
            f"expected rank {rank} once, got it from {', '.join(where)}: give each process a rank"
            " of its own; srun and torchrun do, unless RANK or SLURM_PROCID is set by hand"
        )
    absent = sorted(set(range(max(sizes))) - set(counts))
    if absent:
        yield (
            f"expected {max(sizes)} ranks, got {len(arrived)} in {waited_s:.0f} s: rank"
            f"{'s' * (len(absent) > 1)} {ranges(absent)} did not come. Look at what they printed,"
            " and start the program on every node (srun, or torchrun --nnodes)"
        )


def _ranks_per_node(arrived: Sequence[Facts]) -> Iterator[str]:
    on_node = Counter(facts.node for facts in arrived)
    unlike = [f for f in arrived if f.devices is not None and f.devices != on_node[f.node]]
    if unlike:
        found = {f.node: f"{on_node[f.node]} on {f.node}" for f in unlike}
        wanted = _range({f.devices for f in unlike if f.devices is not None})
        counts = _range({on_node[f.node] for f in unlike})
        yield (
            f"expected {wanted} ranks on each node (devices={wanted}), got"
            f" {', '.join(found.values())}: start it by srun --ntasks-per-node={wanted} or torchrun"
            f" --nproc-per-node {wanted}, or set devices={counts}"
        )
    wanted_nodes = {f.n_nodes for f in arrived if f.n_nodes is not None}
    if wanted_nodes - {len(on_node)}:
        yield (
            f"expected num_nodes={_range(wanted_nodes)}, got ranks on {len(on_node)}"
            f" ({', '.join(on_node)}): ask for nodes by --nodes, or set num_nodes={len(on_node)}"
        )


def _unlike(arrived: Sequence[Facts]) -> Iterator[str]:
    for package in sorted({name for facts in arrived for name in facts.versions}):
        have = _by(arrived, [facts.versions.get(package, "none") for facts in arrived])
        if len(have) > 1:
            yield (
                f"expected one version of {package} on all ranks, got {_listed(have)}: start all"
                " from one environment"
            )
    for what in sorted({name for facts in arrived for name in facts.checkouts}):
        have = _by(arrived, [f.checkouts.get(what, "no checkout")[:12] for f in arrived])
        if len(have) > 1:
            yield (
                f"expected one git commit of the {what} on all ranks, got {_listed(have)}: git"
                " checkout the same commit on every node, or run from a shared folder"
            )


def _clocks(arrived: Sequence[Facts]) -> Iterator[str]:
    off = {f.node: f for f in arrived if abs(f.clock_ahead_s) > MOST_CLOCK_SKEW_S}
    for node, facts in off.items():
        way = "ahead of" if facts.clock_ahead_s > 0 else "behind"
        yield (
            f"expected clocks within {MOST_CLOCK_SKEW_S:.0f} s of each other, got {node}'s"
            f" {abs(facts.clock_ahead_s):.1f} s {way} rank 0's: have its time set (chronyc"
            " makestep), or exclude it (--exclude)"
        )


def _folders(arrived: Sequence[Facts], looks: Mapping[int, Look]) -> Iterator[str]:
    run_dir = arrived[0].run_dir
    for why in ("unwritable", "unshared"):
        bad = {arrived[i].name: getattr(look, why) for i, look in looks.items()}
        told = [f"{name}: {reason}" for name, reason in bad.items() if reason]
        if told and why == "unwritable":
            yield (
                f"expected a run folder that can be written, got {run_dir} with"
                f" {'; '.join(told)}: choose another (hydra.run.dir, default_root_dir)"
            )
        elif told:
            yield (
                f"expected a run folder that all nodes share, got {run_dir} with"
                f" {'; '.join(told)}: choose one on a shared file system (hydra.run.dir,"
                " default_root_dir)"
            )


def _routes(arrived: Sequence[Facts], looks: Mapping[int, Look]) -> Iterator[str]:
    for i, look in looks.items():
        if not look.unreachable or look.peer is None:
            continue
        peer = arrived[look.peer]
        host, port = peer.address or ("", 0)
        name = "NCCL_SOCKET_IFNAME" if "NCCL" in peer.interface else "GLOO_SOCKET_IFNAME"
        yield (
            f"expected that {arrived[i].name} reaches {peer.name} at {host} ({peer.interface}), got"
            f" {look.unreachable} at port {port}: export {name}, the interface that joins the nodes"
            " (ip -brief address lists them)"
        )


def _by(arrived: Iterable[Facts], values: Iterable[_Value]) -> dict[_Value, list[int]]:
    ranks: dict[_Value, list[int]] = defaultdict(list)
    for facts, value in zip(arrived, values, strict=True):
        ranks[value].append(facts.rank)
    return ranks


def _listed(ranks_of: Mapping[_Value, Sequence[int]]) -> str:
    """``2.13.0 (ranks 0-1), 2.12.0 (ranks 2-3)``."""
    return ", ".join(f"{value} (ranks {ranges(ranks)})" for value, ranks in ranks_of.items())


def _range(numbers: set[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers, shortened.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ends)


def report(found: Sequence[str], arrived: Sequence[Facts]) -> str:
    """The findings as a user reads them."""
    nodes = ", ".join(dict.fromkeys(facts.node for facts in arrived))
    many = f"{len(found)} problem{'s' * (len(found) > 1)}"
    lines = [f"{i}. {text}" for i, text in enumerate(found, start=1)]
    return "\n  ".join(
        [
            f"pre-flight: {many}; {len(arrived)} ranks on {nodes} stop before anything is built",
            *lines,
        ]
    )
