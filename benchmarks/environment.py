"""What a result must say of the machine that made it, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import lightning_gradsched
from lightning_gradsched.files import written_whole


def describe_environment() -> dict[str, Any]:
    """Machine, versions and command of this run."""
    return {
        "command": ["python", "-m", "benchmarks." + Path(sys.argv[0]).stem, *sys.argv[1:]],
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_gradsched": lightning_gradsched.__version__,
        "backend": "gloo",
    }


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` indented; a reader never meets half a file."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
    return next(lines, "unknown").partition(":")[2].strip()
