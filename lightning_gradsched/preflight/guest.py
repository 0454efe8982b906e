"""Every rank's side of the meeting, and how it finds rank 0."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any
from uuid import uuid4

from lightning_gradsched.errors import ProcessGroupError
from lightning_gradsched.preflight.doorbell import ring
from lightning_gradsched.preflight.facts import Facts
from lightning_gradsched.preflight.findings import Look
from lightning_gradsched.preflight.host import ANSWER_S, LINE_NBYTES, Task, Verdict

HELLO_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 0.02, 0.5
# A network file system may show a fresh file a little later to other nodes.
FILE_S = 5.0


class Line:
    """A connection that carries lines of JSON."""

    def __init__(self, address: tuple[str, int], timeout_s: float) -> None:
        self._socket = socket.create_connection(address, timeout=timeout_s)
        self._file = self._socket.makefile("rb")

    def receive(self, timeout_s: float) -> dict[str, Any]:
        self._socket.settimeout(timeout_s)
        line = self._file.readline(LINE_NBYTES)
        message = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(message, dict):
            raise ConnectionError("the connection ended")
        return message

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def meet(address: str, ports: Sequence[int], token: str, facts: Facts, timeout_s: float) -> Verdict:
    """Find rank 0 at one of ``ports``, tell it ``facts``, look at what it asks; its verdict.

    Raises:
        ProcessGroupError: rank 0 does not come, or leaves.
    """
    line, clock_ahead_s = _find(address, ports, token, facts, timeout_s)
    try:
        line.send({**asdict(replace(facts, clock_ahead_s=clock_ahead_s)), "token": token})
        task = line.receive(timeout_s + ANSWER_S)
        place = task.pop("address")
        line.send(asdict(look_at(Task(**task, address=None if place is None else tuple(place)))))
        return Verdict(**line.receive(2 * ANSWER_S))
    except (OSError, ValueError) as error:
        raise ProcessGroupError(
            f"{facts.name} has lost rank 0 at {address} in the pre-flight: {error}."
            " Look at what rank 0 printed."
        ) from error
    finally:
        line.close()


def _find(
    address: str, ports: Sequence[int], token: str, facts: Facts, timeout_s: float
) -> tuple[Line, float]:
    """The connection to rank 0, and by how much this rank's clock is ahead of its."""
    deadline_s, pause_s = monotonic() + timeout_s, FIRST_PAUSE_S
    while True:
        reasons: dict[str, list[str]] = {}
        for port in ports:
            try:
                return greet(address, port, token)
            except (OSError, ValueError) as error:
                reasons.setdefault(str(error), []).append(str(port))
        if monotonic() > deadline_s:
            told = "; ".join(f"{why} at {', '.join(at)}" for why, at in reasons.items())
            raise ProcessGroupError(
                f"{facts.name} expected rank 0 of {facts.world_size} at {address} within"
                f" {timeout_s:g} s, got {told}. See that rank 0 was started, what it printed, and"
                " that this node reaches it; MASTER_ADDR names another address."
            )
        sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def greet(address: str, port: int, token: str) -> tuple[Line, float]:
    """As ``_find``, at one port; an ``OSError`` if nobody or somebody else is there."""
    line = Line((address, port), HELLO_S)
    try:
        hello = line.receive(HELLO_S)
        if hello.get("token") != token:
            raise ConnectionError(f"another launch, {str(hello.get('token'))[:80]}")
        return line, time() - float(hello["clock_s"])
    except BaseException:
        line.close()
        raise


def look_at(task: Task) -> Look:
    """Try the run folder and the way to another node."""
    unwritable = unshared = unreachable = ""
    if task.run_dir is not None and task.marker is not None:
        unshared = _why_unshared(Path(task.run_dir, task.marker))
        unwritable = "" if unshared else why_unwritable(Path(task.run_dir))
    if task.address is not None:
        unreachable = ring(task.address, task.answer)
    return Look(unwritable, unshared, unreachable, task.peer)


def _why_unshared(marker: Path) -> str:
    deadline_s = monotonic() + FILE_S
    while monotonic() < deadline_s:
        try:
            os.listdir(marker.parent)  # asks the server, not the cache
            if marker.exists():
                return ""
        except OSError:
            pass  # it may be made a moment later
        sleep(FIRST_PAUSE_S)
    there = "lacks what rank 0 wrote" if marker.parent.is_dir() else "does not exist"
    return f"{marker.parent} {there} there"


def why_unwritable(folder: Path) -> str:
    trial = folder / f".gradsched-preflight-{uuid4().hex}"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        return str(error)
    return ""
