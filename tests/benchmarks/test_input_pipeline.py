"""The benchmark of input runs, writes what its table needs, and leaves no file behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import input_pipeline


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the rivals' packages, and of forks beside threads
def test_every_rival_is_measured_on_the_same_samples(tmp_path: Path) -> None:
    output, folder = tmp_path / "result.json", tmp_path / "files"
    folder.mkdir()
    arguments = ["--tiny", "--rounds", "2", "--workers", "0", "1"]
    input_pipeline.main([*arguments, "--folder", str(folder), "--output", str(output)])
    result = json.loads(output.read_text())
    assert list(result["cases"]) == ["climate", "diffraction"]
    for case in result["cases"].values():
        for by_rival in case["by_workers"].values():
            assert {"limit", "engine", "np.load", "h5py", "h5py core"} <= set(by_rival)
            assert by_rival["limit"]["of_limit"]["middle"] == 1
            assert all(len(each["seconds"]) == 2 for each in by_rival.values())
    assert list(folder.iterdir()) == []
    assert "| engine |" in input_pipeline.table(result)
