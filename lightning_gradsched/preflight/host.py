"""Rank 0's side of the meeting: hears every rank, gives each something to look at, judges.

Messages are lines of JSON, at most ``LINE_NBYTES`` long. Every wait ends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from time import monotonic, time
from typing import Any

from lightning_gradsched.preflight.facts import Facts
from lightning_gradsched.preflight.findings import Look, findings, report

LINE_NBYTES = 2**16
# For answers of ranks that have come: each only tries files and a connection, in bounded time.
ANSWER_S = 20.0


@dataclass(frozen=True)
class Task:
    """What a rank is to look at, once all are known.

    ``marker``: a file's name in ``run_dir``, for one rank of each node; ``peer``: whom to reach, by
    its place in the order of ranks, at ``address``, where it answers ``answer``; for one rank of
    each node where there are several.
    """

    run_dir: str | None = None
    marker: str | None = None
    peer: int | None = None
    address: tuple[str, int] | None = None
    answer: str = ""


@dataclass(frozen=True)
class Verdict:
    """What all ranks are told; ``report`` is empty where all is well, ``port`` is the group's."""

    report: str
    run_dir: str | None
    port: int | None
    n_ranks: int
    n_nodes: int


class Host:
    """Holds the meeting on ``server``, in a thread of its own, until every rank has its verdict.

    Args:
        token: tells this launch's ranks from strangers.
        make_marker: makes a file in the run folder; gives its name, and why that failed.
        port: for the process group; None where the launcher has one.
    """

    def __init__(
        self,
        server: socket.socket,
        token: str,
        make_marker: Callable[[], tuple[str | None, str]],
        port: int | None,
        timeout_s: float,
    ) -> None:
        self._server, self._token, self._port = server, token, port
        self._make_marker, self._timeout_s = make_marker, timeout_s
        self._arrived: list[Facts] = []
        self._looks: dict[int, Look] = {}
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._hold()), name="gradsched pre-flight", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Wait until every rank has its verdict."""
        self._thread.join(ANSWER_S)

    async def _hold(self) -> None:
        self._complete, self._opened = asyncio.Event(), asyncio.Event()
        self._seen, self._judged = asyncio.Event(), asyncio.Event()
        self._guests: set[asyncio.Task[Any]] = set()
        start_s = monotonic()
        server = await asyncio.start_server(self._receive, sock=self._server, limit=LINE_NBYTES)
        await _within(self._timeout_s, self._complete)
        waited_s = monotonic() - start_s
        server.close()
        if not self._arrived:
            return
        self._arrived.sort(key=lambda facts: (facts.rank, facts.pid))
        marker, self._unwritable = self._make_marker()
        self._tasks = tasks_of(self._arrived, marker, self._token)
        self._opened.set()
        await _within(ANSWER_S, self._seen)
        self._verdict = self._judge(waited_s)
        self._judged.set()
        await asyncio.wait(self._guests, timeout=ANSWER_S)

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One rank from hello to verdict. Strangers, and ranks that die, are left alone."""
        try:
            await _send(writer, {"token": self._token, "clock_s": time()})
            message = json.loads(await reader.readline())
            if message.pop("token") == self._token and not self._opened.is_set():
                await self._host(facts_from(message), reader, writer)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # what is missing is a finding
        finally:
            writer.close()

    async def _host(
        self, facts: Facts, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._guests.add(task)
        self._arrived.append(facts)
        if len(self._arrived) >= max(each.world_size for each in self._arrived):
            self._complete.set()
        await self._opened.wait()
        index = self._arrived.index(facts)
        await _send(writer, asdict(self._tasks[index]))
        self._looks[index] = Look(**json.loads(await reader.readline()))
        if len(self._looks) == len(self._arrived):
            self._seen.set()
        await self._judged.wait()
        await _send(writer, asdict(self._verdict))

    def _judge(self, waited_s: float) -> Verdict:
        arrived = self._arrived
        looks = dict(self._looks)
        if self._unwritable and 0 in looks:
            looks[0] = replace(looks[0], unwritable=self._unwritable)
        found = list(findings(arrived, looks, waited_s))
        text = report(found, arrived) if found else ""
        if text:
            # Before the others hear of it: a launcher may kill this rank when the first one ends.
            print(text, file=sys.stderr, flush=True)
        return Verdict(
            report=text,
            run_dir=arrived[0].run_dir if arrived else None,
            port=self._port,
            n_ranks=len(arrived),
            n_nodes=len({facts.node for facts in arrived}),
        )


def tasks_of(arrived: list[Facts], marker: str | None, token: str) -> list[Task]:
    """What each rank looks at: the first of each node at the folder, and at the node before it."""
    first = {facts.node: i for i, facts in reversed(list(enumerate(arrived)))}
    firsts = sorted(first.values())
    before = dict(zip(firsts, [*firsts[-1:], *firsts[:-1]], strict=True))
    tasks = []
    for i in range(len(arrived)):
        peer = before.get(i) if len(firsts) > 1 else None
        tasks.append(
            Task(
                run_dir=arrived[0].run_dir,
                marker=marker if i in before else None,
                peer=peer,
                address=None if peer is None else arrived[peer].address,
                answer=""
                if peer is None
                else answer_of(token, arrived[peer].host, arrived[peer].pid),
            )
        )
    return tasks


def answer_of(token: str, host: str, pid: int) -> str:
    """What the rank in this process says to those who ring at its address."""
    return f"{token} {host} {pid}"


def facts_from(message: dict[str, Any]) -> Facts:
    address = message.pop("address")
    problems = tuple(message.pop("problems"))
    return Facts(**message, address=None if address is None else tuple(address), problems=problems)


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


async def _within(timeout_s: float, event: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return
