"""The throughput benchmarks, with the tiny preset on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import device_throughput, weak_scaling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_device_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Eager only: compiling takes a minute of a CPU, and is torch's own business.
    eager = {name: v for name, v in device_throughput.VARIANTS.items() if not v["compiled"]}
    monkeypatch.setattr(device_throughput, "VARIANTS", eager)
    output = tmp_path / "device.json"
    arguments = [
        "--presets",
        "tiny",
        "--plane",
        "8",
        "--batch",
        "2",
        "--device",
        "cpu",
        "--steps",
        "2",
        "--rounds",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["device_throughput", *arguments, "--output", str(output)])
    device_throughput.main()
    written = json.loads(output.read_text())
    assert "thread" in written["environment"]["device"]
    tiny = written["results"]["tiny"]
    assert tiny["n_weights"] == 535_320
    assert set(tiny["variants"]) == set(eager)
    for row in tiny["variants"].values():
        assert len(row["step_s"]) == 4
        assert row["flop_per_s"] == pytest.approx(row["samples_per_s"] * tiny["flop_per_sample"])
        assert row["peak_share"] == pytest.approx(row["flop_per_s"] / tiny["peak_flop_per_s"])
        assert 0.0 < sum(operator["share"] for operator in row["top_operators"]) <= 1.0 + 1e-6
    assert "of peak" in capsys.readouterr().out


def test_weak_scaling_needs_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["weak_scaling", "--ranks", "2"])
    with pytest.raises(SystemExit):
        weak_scaling.main()


def test_a_cell_of_weak_scaling(tmp_path: Path) -> None:
    rates = weak_scaling.run_cell("gradsched", 2, 10, tmp_path)
    assert len(rates) == 1
    assert rates[0] > 0.0
