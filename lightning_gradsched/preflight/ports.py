"""Where rank 0 listens, and a free port for the process group."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from lightning_gradsched.preflight.guest import greet
from lightning_gradsched.runtime.topology import (
    SLURM_PORTS,
    TORCHRUN_VARIABLES,
    Launch,
    meeting_ports,
)

BACKLOG = 4096
# Kept while this process lives; see `group_port`.
_reserved: list[socket.socket] = []


def listen(address: str, ports: Sequence[int], token: str) -> socket.socket | None:
    """Rank 0's socket at the first free port; None where another process already is rank 0.

    Or where ``address`` is another host's: then this process goes there as a guest, and is counted.
    """
    if not _is_own(address):
        return None
    for port in ports:
        try:
            return socket.create_server(("", port), backlog=BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        with suppress(OSError, ValueError):
            line, _ = greet(address, port, token)
            line.close()
            return None
    return None


def group_port(token: str) -> int | None:
    """A port for the process group; None where torchrun's agent or the user has chosen one.

    It is reserved until the group takes it, for a model may be built in between: a socket that is
    bound and does not listen keeps other launches away, and lets torch's, which reuses addresses,
    listen.
    """
    if "MASTER_PORT" in os.environ or _is_torchrun():
        return None
    start = SLURM_PORTS.index(meeting_ports(token)[-1])
    ports: list[int] = [*SLURM_PORTS[start + 1 :], *SLURM_PORTS[:start]]
    for port in ports:
        with suppress(OSError):
            with socket.socket() as trial:  # refused also where another launch has a reservation
                trial.bind(("", port))
            holder = socket.socket()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("", port))
            _reserved.append(holder)
            return port
    return None


def port_problem(launch: Launch) -> str:
    """Why the process group cannot listen at MASTER_PORT; torchrun's agent does so itself."""
    if launch.rank != 0 or "MASTER_PORT" not in os.environ or _is_torchrun():
        return ""
    if launch.port in (holder.getsockname()[1] for holder in _reserved):
        return ""
    why = why_taken(launch.port) if _is_own(launch.address) else ""
    return why and (
        f"expected that port {launch.port} (MASTER_PORT) is free, got {why}: unset MASTER_PORT, and"
        " a free one is found, or choose another (ss -tlnp shows whose it is)"
    )


def why_taken(port: int) -> str:
    """Why nothing can listen at ``port``; empty if something can."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_torchrun() -> bool:
    return all(name in os.environ for name in TORCHRUN_VARIABLES)


def _is_own(address: str) -> bool:
    """Whether ``address`` is one of this host's."""
    try:
        with socket.socket() as trial:
            trial.bind((address, 0))
    except OSError:
        return False
    return True
