"""A real SLURM on this machine, for tests: munged, slurmctld and several slurmd, without systemd.

Each node is a slurmd in namespaces of its own: a host name, a hosts file, a node-local folder, and
where the kernel permits a network interface with a link that can be shaped (`benchmarks/links.py`).
All daemons are children of this process and die with it. Needs root, and Debian's packages
slurm-wlm and munge.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

from benchmarks.links import LinkError, ShapedLinks

DAEMONS = ("munged", "slurmctld", "slurmd")
TOOLS = ("srun", "sbatch", "scontrol", "sinfo", "squeue", "scancel", "unshare", "setpriv")
START_S, CANCEL_S, STOP_S = 120.0, 60.0, 15.0
FOLDER_PREFIX = "gradsched-slurm-"
CONF = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again (default 120 s).
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# The nodes say that they have more cores than this machine.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
# A node that was set down stays so.
ReturnToService=1
SlurmctldTimeout=30
SlurmdTimeout=60
GresTypes=gpu
# From SIGTERM to SIGKILL of a job that is over.
KillWait=5
MinJobAge=600
"""
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES PriorityTier=5 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=preemptible Nodes=ALL PriorityTier=1 GraceTime=30 MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    lacking = [name for name in (*DAEMONS, *TOOLS) if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    own = [
        "unshare",
        "--mount",
        "--uts",
        "--propagation",
        "slave",
        "mount",
        "--bind",
        "/tmp",
        "/tmp",
    ]
    if os.geteuid() != 0 or subprocess.run(own, capture_output=True).returncode:
        return "nodes with host names of their own need root, and namespaces"
    return ""


def can_shape_links() -> bool:
    """Whether this kernel lets this process make hosts with links."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return False
    try:
        with ShapedLinks(1, 1e9):
            return True
    except LinkError:
        return False


class Cluster:
    """A context with a running SLURM of nodes n1 to nN; on leaving it nothing is left.

    ``with_links``: each node has its own network interface, whose rate ``links`` sets.

    Attributes:
        folder: logs, state and ``shared``, which all nodes see.
        local_disk: a path that is another folder on each node; ``disk_of`` gives it from outside.
        environ: the environment in which SLURM's commands speak to this cluster.
    """

    def __init__(self, n_nodes: int, cpus_per_node: int, *, with_links: bool = False) -> None:
        self.nodes = [f"n{i + 1}" for i in range(n_nodes)]
        self.cpus_per_node = cpus_per_node
        self.links: ShapedLinks | None = None
        self._with_links = with_links
        self._stack = ExitStack()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            # Short: a socket's path has a hundred characters.
            self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            if self._with_links:
                subnet = f"10.{80 + os.getpid() % 100}.{os.getpid() // 100 % 256}"
                self.links = ShapedLinks(len(self.nodes), subnet=subnet, reachable=True)
                stack.enter_context(self.links)
            self._prepare()
            stack.callback(self._stop)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def environ(self) -> dict[str, str]:
        """This process's, without what another launcher has left in it."""
        others = ("SLURM", "SBATCH", "MASTER_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        # submitit asks sacct, which needs accounting: a stand-in asks scontrol.
        tools = Path(__file__).parent / "bin"
        return clean | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        }

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    @property
    def local_disk(self) -> Path:
        return self.folder / "local"

    def disk_of(self, node: str) -> Path:
        return self.folder / "disks" / node

    def address(self, node: str) -> str:
        i = self.nodes.index(node)
        return f"127.0.1.{i + 1}" if self.links is None else self.links.address(i)

    def run(self, *command: str | Path, timeout_s: float = 30) -> str:
        """What a command of SLURM's prints."""
        result = subprocess.run(
            [*map(str, command)],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def wait_until_idle(self) -> None:
        """Return when every node is idle; a node that was set down does not become so by itself."""

        def all_idle() -> bool:
            idle = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N")
            return set(idle.split()) == set(self.nodes)

        if not until(all_idle, START_S):
            raise AssertionError(f"nodes are not idle: {self.run('sinfo', '-N', '-l')}{self.log()}")

    def clear(self) -> None:
        """Cancel what still runs, wait for idle nodes, and empty the node-local folders."""
        self.cancel_all()
        self.wait_until_idle()
        for node in self.nodes:
            for path in self.disk_of(node).iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def cancel_all(self) -> None:
        if jobs := self._jobs():
            # Their processes get no time: nobody waits for what they would still say. A job that
            # ends meanwhile is an error to scancel.
            for flags in (["--full", "--signal=KILL"], []):
                subprocess.run(
                    ["scancel", *flags, *jobs], env=self.environ, capture_output=True, timeout=30
                )
            until(lambda: not self._jobs(), CANCEL_S)

    def log(self) -> str:
        """The last lines of each daemon's log."""
        logs = sorted((self.folder / "log").glob("*.log"))
        return "".join(f"\n{p.name}:\n" + "\n".join(_last_lines(p)) for p in logs)

    @contextmanager
    def down(self, node: str) -> Iterator[None]:
        """`node` set down, as an operator or a health check does; up again afterwards."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        try:
            yield
        finally:
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def _prepare(self) -> None:
        for name in ("munge", "state", "spool", "log", "shared", "local"):
            (self.folder / name).mkdir()
        for node in self.nodes:
            self.disk_of(node).mkdir(parents=True)
            (self.folder / "spool" / node).mkdir()
        key = self.folder / "munge" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        controller = "127.0.0.1" if self.links is None else self.links.gateway
        hosts = ["127.0.0.1 localhost", f"{controller} {socket.gethostname()}"]
        hosts += [f"{self.address(node)} {node}" for node in self.nodes]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "slurm.conf").write_text(self._conf(controller))
        for i in range(4):
            (self.folder / f"gpu{i}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-3]\n")

    def _conf(self, controller: str) -> str:
        port, *ports = free_ports(1 + len(self.nodes))
        conf = CONF.format(
            host=socket.gethostname(), address=controller, port=port, folder=self.folder
        )
        # GPUs in name: scripts that ask for them can be submitted.
        size = f"CPUs={self.cpus_per_node} RealMemory=2000 Gres=gpu:4 State=UNKNOWN"
        for node, node_port in zip(self.nodes, ports, strict=True):
            where = f"NodeHostname={node} NodeAddr={self.address(node)} Port={node_port}"
            conf += f"NodeName={node} {where} {size}\n"
        return conf + PARTITIONS

    def _start(self) -> None:
        munge = self.folder / "munge"
        # --force: the temporary folder may be closed to other users, of whom there are none.
        files = ("key-file=munge.key", "socket=munge.sock", "pid-file=pid", "seed-file=seed")
        paths = [f"--{option}={munge / name}" for option, name in (f.split("=") for f in files)]
        log = f"--log-file={self.folder}/log/munged.log"
        self._daemon("munged", "--foreground", "--force", "--num-threads=2", log, *paths)
        if not until((munge / "munge.sock").exists, START_S):
            raise AssertionError(f"munged does not start:{self.log()}")
        self._daemon("slurmctld", "-D")
        for i, node in enumerate(self.nodes):
            self._daemon("slurmd", "-D", "-N", node, enter=self._enter(i, node))
        if not until(self._is_up, START_S):
            raise AssertionError(f"slurmctld does not answer:{self.log()}")
        self.wait_until_idle()

    def _enter(self, i: int, node: str) -> list[str]:
        """What starts a command as it would on `node`."""
        script = (
            f"hostname {node} && mount --bind {self.folder}/hosts /etc/hosts"
            f' && mount --bind {self.disk_of(node)} {self.local_disk} && exec "$@"'
        )
        # Not `ip netns exec`: that hides /sys/fs/cgroup, and slurmd then fails.
        net = [] if self.links is None else ["nsenter", f"--net={self.links.namespace(i)}"]
        own = ["unshare", "--mount", "--uts", "--propagation", "slave"]
        return [*net, *own, "sh", "-c", script, "sh"]

    def _daemon(self, *command: str, enter: list[str] | None = None) -> None:
        # They end with this process, however that ends.
        line = [*(enter or []), "setpriv", "--pdeathsig", "KILL", *command]
        with (self.folder / "log" / f"{command[0]}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    line,
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def _is_up(self) -> bool:
        ping = ["scontrol", "ping"]
        result = subprocess.run(ping, env=self.environ, capture_output=True, text=True, timeout=30)
        return " is UP" in result.stdout

    def _jobs(self) -> list[str]:
        return self.run("squeue", "--noheader", "--format=%A").split()

    def _stop(self) -> None:
        try:
            if len(self._daemons) > 1 and self._is_up():
                self.cancel_all()
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                _end(daemon)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    try:
        daemon.wait(STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _last_lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-15:]


def until(holds: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
    """Wait until `holds()`; whether it did within the time."""
    deadline = monotonic() + timeout_s
    while not holds():
        if monotonic() > deadline:
            return False
        sleep(every_s)
    return True


def free_ports(n: int) -> list[int]:
    """Ports that nobody has at this moment."""
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
