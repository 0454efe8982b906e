"""Starts steps and jobs on the test's cluster, and gives back what they left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from tests.slurm.cluster import Cluster, until

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
# Several ranks load torch and Lightning on whatever cores there are, at the worst with others.
STEP_S = 600
# As many steps as show that ranks train together, of the smallest net.
TINY = (
    "net.channels=4",
    "net.blocks=1",
    "data.patch_px=16",
    "data.batch_size=2",
    "data.patches_per_epoch=16",
    "trainer.max_steps=2",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
)
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class Ended:
    """How a step ended, and what it printed."""

    code: int
    text: str
    seconds: float


def environ_of(cluster: Cluster, **more: str) -> dict[str, str]:
    path = f"{Path(PYTHON).parent}{os.pathsep}{cluster.environ['PATH']}"
    return {**cluster.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}


def srun(
    cluster: Cluster,
    *command: str | Path,
    cwd: Path = ROOT,
    timeout_s: float = STEP_S,
    **environ: str,
) -> Ended:
    """`srun COMMAND`, its flags first; a step that does not end in time is killed, and fails."""
    start_s = monotonic()
    step = subprocess.Popen(
        ["srun", *map(str, command)],
        cwd=cwd,
        env=environ_of(cluster, **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text, _ = step.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        step.terminate()  # cancels the step and its job
        text, _ = step.communicate()
        raise AssertionError(f"{command} had not ended after {timeout_s} s:\n{text}") from None
    return Ended(step.returncode, text, monotonic() - start_s)


@dataclass(frozen=True)
class Job:
    """A job that was submitted; its output goes to a file of the cluster's shared folder."""

    cluster: Cluster
    id: str

    @property
    def output(self) -> Path:
        return self.cluster.shared / f"{self.id}.out"

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def field(self, name: str) -> str:
        """A field of `scontrol show job`, such as JobState."""
        shown = self.cluster.run("scontrol", "show", "job", self.id)
        found = re.search(rf"\b{name}=(\S+)", shown)
        assert found, shown
        return found[1]

    def prints(self, text: str, timeout_s: float = STEP_S) -> None:
        """Wait until the job's output holds `text`."""
        assert until(lambda: text in self.text(), timeout_s, 0.2), self._state()

    def is_in(self, *states: str, timeout_s: float = STEP_S) -> None:
        """Wait until the job is in one of `states`."""
        assert until(lambda: self.field("JobState") in states, timeout_s, 0.2), self._state()

    def end(self, timeout_s: float = STEP_S) -> str:
        """Wait until the job is over; its last state."""
        self.is_in(*OVER, timeout_s=timeout_s)
        return self.field("JobState")

    def completes(self, timeout_s: float = STEP_S) -> str:
        """Wait until the job has ended well; what it printed."""
        assert self.end(timeout_s) == "COMPLETED", self._state()
        return self.text()

    def _state(self) -> str:
        shown = self.cluster.run("scontrol", "show", "job", self.id)
        return f"{shown}\n{self.text()[-4000:]}\n{self.cluster.log()}"


def sbatch(cluster: Cluster, *command: str | Path, cwd: Path = ROOT, **environ: str) -> Job:
    """`sbatch COMMAND`, its flags first."""
    is_array = any(str(part).startswith("--array") for part in command)
    output = f"{cluster.shared}/{'%A_%a' if is_array else '%A'}.out"
    result = subprocess.run(
        ["sbatch", "--parsable", f"--output={output}", *map(str, command)],
        cwd=cwd,
        env=environ_of(cluster, **environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return Job(cluster, result.stdout.strip())
