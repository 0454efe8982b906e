"""Two nodes behind a slow link train as one node does: `benchmarks/slurm_two_nodes.py`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import can_shape_links, missing
from tests.slurm.jobs import PYTHON, ROOT, STEP_S

RESULT = ROOT / "benchmarks" / "results" / "slurm_two_nodes.json"


@pytest.mark.slow
@pytest.mark.skipif(missing() != "", reason=missing())
def test_the_benchmark(tmp_path: Path) -> None:
    if not can_shape_links():
        pytest.skip("this kernel makes no shaped links")
    output = tmp_path / "result.json"
    result = subprocess.run(
        [PYTHON, *f"-m benchmarks.slurm_two_nodes --steps 12 --output {output}".split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * STEP_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(output.read_text())
    assert found["weights_equal"]
    assert set(found["reports"]) == {"two nodes", "one node"}
    assert found["reports"]["two nodes"]["comm_s"] > found["reports"]["one node"]["comm_s"]


def test_the_published_result_is_of_equal_weights() -> None:
    published = json.loads(RESULT.read_text())
    assert published["weights_equal"]
    assert published["rate_bit_per_s"] == 1e8
    assert published["reports"]["two nodes"]["exposed_s"] >= 0
