"""Whether other nodes reach this process where its backend will say that it can be reached."""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
from collections.abc import Mapping
from typing import NamedTuple

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
ANSWER_S = 5.0


class Interface(NamedTuple):
    """The address that a backend will give to the other ranks, and how it chooses it."""

    address: str | None
    why: str
    problem: str = ""


def interface_of(environ: Mapping[str, str], backend: str) -> Interface:
    """What gloo or NCCL will take, by their own rules, where these can be known beforehand.

    gloo takes the interface of GLOO_SOCKET_IFNAME, else the address of the host's name, else, if
    that is no address of this host, the loopback. NCCL finds a way by itself, unless
    NCCL_SOCKET_IFNAME says which.
    """
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    wanted = environ.get(variable, "").split(",")[0]
    if backend == "gloo" and not wanted:
        return _by_host_name(socket.gethostname())
    if not wanted or wanted.startswith("^"):
        return Interface(None, "")
    names = [name for _, name in socket.if_nameindex()]
    fits = wanted[1:] if wanted.startswith("=") else wanted
    exact = backend == "gloo" or wanted.startswith("=")
    chosen = [name for name in names if (name == fits if exact else name.startswith(fits))]
    if not chosen:
        return Interface(
            None,
            "",
            f"expected the network interface {variable}={wanted}, got {', '.join(names)}: export"
            f" {variable} as one of these",
        )
    return Interface(_ipv4(chosen[0]), f"{variable}={wanted}")


def _by_host_name(name: str) -> Interface:
    try:
        address = socket.gethostbyname(name)
        with socket.socket() as trial:
            trial.bind((address, 0))
    except OSError:
        # gloo warns, and every other node then waits for a loopback of its own.
        return Interface("127.0.0.1", f"the loopback, as the name {name} is no address of it")
    return Interface(address, f"the address of its name {name}")


def _ipv4(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            request = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(any_socket, _SIOCGIFADDR, request)[20:24])
        except OSError:
            return None  # an interface with IPv6 alone


class Doorbell:
    """Listens at ``address`` and says ``token`` to whoever rings, until it is closed."""

    def __init__(self, address: str, token: str) -> None:
        self._token = token
        self._socket = socket.create_server((address, 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._thread = threading.Thread(target=self._answer, name="gradsched doorbell", daemon=True)
        self._thread.start()

    def close(self) -> None:
        # Wakes the thread, as closing alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(ANSWER_S)
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(ANSWER_S)
                try:
                    connection.sendall(self._token.encode())
                except OSError:
                    continue


def ring(address: tuple[str, int], token: str) -> str:
    """Why nobody with ``token`` answers at ``address``; empty if somebody does."""
    try:
        with socket.create_connection(address, timeout=ANSWER_S) as connection:
            answer = b""
            while part := connection.recv(1024):
                answer += part
    except OSError as error:
        return str(error)
    return "" if answer == token.encode() else "an answer of another process"
