"""Several hosts on this machine, joined by links of a given rate: Linux network namespaces.

Each host is a namespace with a virtual Ethernet pair into one bridge; a token bucket (``tc tbf``)
on both ends of the pair limits what it sends and what it receives. It needs root, or user
namespaces (``unshare --map-root-user``), in which everybody is root over their own links.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
SUBNET = "10.79.0"
RESULT = "GRADSCHED_BENCH_RESULT"
INSIDE = "GRADSCHED_BENCH_NAMESPACE"  # set where this process was started again by `become_root`


class LinkError(RuntimeError):
    """This machine cannot make shaped links; says what is missing."""


def become_root() -> None:
    """Where this user is not root: start this command again as root of a new user namespace.

    Raises:
        LinkError: ``ip`` or ``tc`` is missing, or the kernel lets this user make no namespace.
    """
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise LinkError(f"shaped links need {missing}: install iproute2")
    if os.geteuid() == 0:
        return
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        raise LinkError(
            "shaped links need root or user namespaces, got neither: run as root, or allow them by"
            " `sysctl kernel.unprivileged_userns_clone=1`"
        )
    os.environ[INSIDE] = "1"
    # `ip netns` keeps its names under /run, which is the real root's.
    shell = ["sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    os.execvp("unshare", [*unshare, *shell, sys.executable, *sys.orig_argv[1:]])


def privileges() -> str:
    """For the record: whose root made the links."""
    return "root of a user namespace" if INSIDE in os.environ else "root"


def existing_hosts() -> list[str]:
    """Names of all namespaces that there are, of whoever made them."""
    return sorted(line.split()[0] for line in _run("ip", "netns", "list").splitlines())


class ShapedLinks:
    """A context with ``n_hosts`` hosts; on leaving it they are gone.

    ``rate_bit_per_s`` holds for each direction of each host's link; None leaves them unshaped.
    ``reachable``: this machine takes part at the address ``gateway``, its link unshaped.
    """

    def __init__(
        self,
        n_hosts: int,
        rate_bit_per_s: float | None = None,
        *,
        subnet: str = SUBNET,
        reachable: bool = False,
    ) -> None:
        self._hosts = range(n_hosts)
        self._rate = rate_bit_per_s
        self._subnet = subnet
        self._reachable = reachable
        self._prefix = f"gs{os.getpid()}"

    def __enter__(self) -> ShapedLinks:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def command(self, host: int) -> list[str]:
        """What to put before a command so that it runs on ``host``."""
        # A host is named by its address, so that its name is known to the others.
        rename = [
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {self.address(host)} && exec "$@"',
            "sh",
        ]
        return ["ip", "netns", "exec", self._name(host), *rename]

    def address(self, host: int) -> str:
        return f"{self._subnet}.{host + 1}"

    @property
    def gateway(self) -> str:
        return f"{self._subnet}.254"

    def namespace(self, host: int) -> str:
        """The file of ``host``'s network namespace."""
        return f"/run/netns/{self._name(host)}"

    def set_rate(self, rate_bit_per_s: float | None) -> None:
        self._rate = rate_bit_per_s
        for host in self._hosts:
            self._shape("eth0", ["ip", "netns", "exec", self._name(host)])
            self._shape(self._port(host), [])

    def _name(self, host: int) -> str:
        return f"{self._prefix}h{host}"

    def _port(self, host: int) -> str:
        return f"{self._prefix}v{host}"

    def _make(self) -> None:
        bridge = f"{self._prefix}br"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        if self._reachable:
            _run("ip", "addr", "add", f"{self.gateway}/24", "dev", bridge)
        for host in self._hosts:
            name, port = self._name(host), self._port(host)
            _run("ip", "netns", "add", name)
            _run(*f"ip link add {port} type veth peer name eth0 netns {name}".split())
            _run("ip", "link", "set", port, "master", bridge, "up")
            for command in (f"addr add {self.address(host)}/24 dev eth0", "link set eth0 up"):
                _run("ip", "-n", name, *command.split())
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _use_cubic(["ip", "netns", "exec", name])
            _tolerate_reordering(["ip", "netns", "exec", name])
        self.set_rate(self._rate)

    def _remove(self) -> None:
        for host in self._hosts:
            # The pair goes with its namespace, but not at once: the names must be free again.
            subprocess.run(["ip", "link", "del", self._port(host)], capture_output=True)
            subprocess.run(["ip", "netns", "del", self._name(host)], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._prefix}br"], capture_output=True)

    def _shape(self, device: str, on_host: list[str]) -> None:
        if self._rate is None:
            remove = [*on_host, *f"tc qdisc del dev {device} root".split()]
            subprocess.run(remove, capture_output=True)  # fails where there was none
            return
        segment, burst, limit = token_bucket(self._rate)
        _run(*on_host, "ip", "link", "set", "dev", device, "gso_max_size", str(segment))
        tbf = f"tbf rate {int(self._rate)}bit burst {burst} limit {limit}"
        _run(*on_host, "tc", "qdisc", "replace", "dev", device, "root", *tbf.split())


def run_ranks(
    hosts: ShapedLinks,
    module: Sequence[str],
    timeout_s: float,
    variables: Sequence[Mapping[str, str]],
    host_of_rank: Sequence[int] | None = None,
) -> None:
    """``python -m module...`` as each rank of a job; ``variables``: of its environment, by rank.

    ``host_of_rank``: where None, each rank is on a host of its own.

    Raises:
        SystemExit: a rank has failed, or not ended in time; the others are ended.
    """
    placed = range(len(variables)) if host_of_rank is None else host_of_rank
    ranks = [
        subprocess.Popen(
            [*hosts.command(host), sys.executable, "-m", *module],
            cwd=ROOT,
            env=_environment(rank, len(placed), hosts.address(placed[0])) | variables[rank],
        )
        for rank, host in enumerate(placed)
    ]
    codes = wait_for_ranks(ranks, timeout_s)
    if any(code != 0 for code in codes):
        raise SystemExit(
            f"{' '.join(module)}: the ranks ended with {codes}; None: not within {timeout_s:g} s,"
            " or before another had failed"
        )


def result_of_ranks(
    hosts: ShapedLinks,
    module: Sequence[str],
    timeout_s: float,
    variables: Sequence[Mapping[str, str]],
    host_of_rank: Sequence[int] | None = None,
) -> Any:
    """The JSON that rank 0 has written to ``result_path()``; as ``run_ranks``."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        variables = [{**of_rank, RESULT: str(result)} for of_rank in variables]
        run_ranks(hosts, module, timeout_s, variables, host_of_rank)
        return json.loads(result.read_text())


def result_path() -> Path:
    """On rank 0: where ``result_of_ranks`` expects a JSON."""
    return Path(os.environ[RESULT])


def wait_for_ranks(ranks: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> list[int | None]:
    """Their exit codes when all have ended, one has failed or it took too long: None of others.

    Those are killed.
    """
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            codes = [process.poll() for process in ranks]
            if None not in codes or any(codes) or time.monotonic() > deadline:
                return codes
            time.sleep(0.2)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _environment(rank: int, n_ranks: int, master: str) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": master,
        # A namespace of its own: every port is free.
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": "eth0",
        # It warns that hosts have no names.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def _use_cubic(on_host: list[str]) -> None:
    """Linux's usual congestion control. BBR halts for 200 ms every 10 s, to look at the latency."""
    setting = "net.ipv4.tcp_congestion_control"
    if _run(*on_host, "sysctl", "-n", setting).strip() == "cubic":
        return
    allowed = _run("sysctl", "-n", "net.ipv4.tcp_allowed_congestion_control").strip()
    if "cubic" not in allowed.split():
        # Namespaces may use what the machine allows; this allows more, and changes nothing there.
        _run("sysctl", "-qw", f"net.ipv4.tcp_allowed_congestion_control={allowed} cubic")
    _run(*on_host, "sysctl", "-qw", f"{setting}=cubic")


def _tolerate_reordering(on_host: list[str]) -> None:
    """Nothing is lost here, but two cores that forward packets let some overtake others.

    TCP would take that for a loss, send them again and cut its window: a connection that this
    happened to while it was young went at 0.93 of the rate for seconds, which no cable does.
    """
    _run(*on_host, "sysctl", "-qw", "net.ipv4.tcp_recovery=0", "net.ipv4.tcp_reordering=300")


def token_bucket(rate_bit_per_s: float) -> tuple[int, int, int]:
    """Bytes of the largest segment, the bucket and its queue.

    A bucket smaller than two segments halves the throughput; one much larger lets short messages
    pass as if there were no limit. So segments are cut to 130 us of the line. The queue holds 20 ms
    of it, or a megabyte, so that nothing is dropped.

    >>> token_bucket(1e9)
    (16250, 33524, 2500000)
    """
    bytes_per_s = rate_bit_per_s / 8
    segment = round(min(max(130e-6 * bytes_per_s, 3000), 65536))
    return segment, 2 * segment + 1024, int(max(0.02 * bytes_per_s, 1_000_000))


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise LinkError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout
