"""Every command that the README shows is run: here, or by CI itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent

# As shown -> as run here: shorter where a flag makes it so, and what it must print.
COMMANDS = {
    "pip install .": ("pip wheel . --no-deps --wheel-dir {tmp}", "Successfully built"),
    "python examples/quickstart.py": ("python examples/quickstart.py", "exposed communication"),
    "torchrun --nproc-per-node 2 examples/plain_loop.py": (
        "torchrun --standalone --nproc-per-node 2 examples/plain_loop.py",
        "after schedule R0",
    ),
    "torchrun --nproc-per-node 2 examples/own_planner.py": (
        "torchrun --standalone --nproc-per-node 2 examples/own_planner.py",
        "sizes [1, 2, 4, 5]",
    ),
    "python -m zoo.train experiment=super_resolution strategy=ddp": (
        "python -m zoo.train experiment=super_resolution strategy=ddp trainer.max_steps=2"
        " hydra.run.dir={tmp}",
        "resume",
    ),
    "python -m zoo.train --help": ("python -m zoo.train --help", "experiment=super_resolution"),
    "torchrun --nproc-per-node 2 --no-python gradsched doctor": (
        "torchrun --standalone --nproc-per-node 2 --no-python gradsched doctor",
        "ranks",
    ),
    "python -m benchmarks.step_time --nets many_small --ratios 0.5": (
        "python -m benchmarks.step_time --nets many_small --ratios 0.5 --cell-s 1"
        " --rivals alone gradsched ddp_default --work {tmp}",
        "| many_small | 0.5 | default |",
    ),
    "python -m benchmarks.overhead": ("python -m benchmarks.overhead --steps 5", "x ddp"),
}
# The demos are test_demo's and tests/zoo/test_diffraction.py's; the others are what CI calls.
RUN_ELSEWHERE = {"make demo", "make demo TASK=super_resolution", "make test", "make lint"}


def shown_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_no_command_is_shown_that_nothing_runs() -> None:
    assert set(shown_commands()) - RUN_ELSEWHERE == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("shown", COMMANDS)
def test_command(shown: str, tmp_path: Path) -> None:
    command, expected = COMMANDS[shown]
    result = subprocess.run(
        command.format(tmp=tmp_path).split(),
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "shaped links need" in result.stderr:
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_python_snippets_name_things_that_exist() -> None:
    import lightning_gradsched

    for name in re.findall(r"from lightning_gradsched import (\w+)", README):
        assert name in lightning_gradsched.__all__
    (knobs,) = re.findall(r"```python\n(GradSchedStrategy\(.*?\n\))", README, flags=re.DOTALL)
    strategy = eval(knobs, {"GradSchedStrategy": lightning_gradsched.GradSchedStrategy})
    assert strategy.config.trace_path == "trace.json"


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """`make demo TASK=super_resolution`: two ranks, the stated gain, and all that it promises."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "zoo.train", "experiment=super_resolution"),
            f"hydra.run.dir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr
    (mean_row,) = re.findall(r"│ mean .*", result.stdout)
    assert float(mean_row.split("│")[4]) >= 0.7, "mean gain over bicubic in dB"
    assert "gradsched: step" in result.stdout
    for name in ("results.json", "comparison.png", "gradsched_trace.json", "checkpoints/last.ckpt"):
        assert (tmp_path / name).stat().st_size > 0
