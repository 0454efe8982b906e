"""Every command that docs/clusters.md shows is one that a test runs."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

from tests.slurm import (
    cluster,
    disturbed,
    jobs,
    test_doctor,
    test_examples,
    test_launch,
    test_submitit,
    test_survival,
    test_two_nodes,
)
from tests.slurm.jobs import ROOT

PAGE = (ROOT / "docs" / "clusters.md").read_text()
# How a command begins -> the test that runs it, in its own file or by helpers beside it.
TESTS = {
    "python -m zoo.train experiment": test_launch.two_ranks,
    "srun --nodes=2 --ntasks-per-node=1 python": test_launch.test_srun_on_two_nodes,
    "sbatch examples/slurm/several_nodes": (
        test_launch.test_a_step_of_2_x_2_ranks_and_one_of_3_and_1
    ),
    "torchrun": test_launch.test_torchrun_on_two_nodes,
    "srun --nodes=2 --ntasks-per-node=1 gradsched": (
        test_doctor.test_it_reports_what_the_job_would_meet
    ),
    "sbatch examples/slurm/one_node": test_examples.test_one_node,
    "DATA": test_examples.test_staging,
    "VALUES": test_examples.test_sweep_array,
    "python -m zoo.train --multirun": test_submitit.test_a_sweep_of_jobs_on_two_nodes,
    "sbatch --partition=preemptible": test_examples.test_preemptible,
    "squeue": jobs.Job,
    "scancel": disturbed.requeued,
    "scontrol update": test_survival.test_a_node_that_goes_down,
    "python -m benchmarks": test_two_nodes.test_the_benchmark,
}
# Filled in by the reader, or left to the environment.
FREE = re.compile(r"\b(JOB|n1:\d+|1e-\d|2e-\d|3e-\d|outputs)\b")


def shown() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def source(module: ModuleType) -> str:
    return inspect.getsource(module)


def test_each_command_has_a_test() -> None:
    commands = shown()
    assert len(commands) >= len(TESTS)
    for command in commands:
        assert any(command.startswith(start) for start in TESTS), command


@pytest.mark.parametrize("command", shown())
def test_the_words_of_a_command_are_in_the_code_that_runs_it(command: str) -> None:
    (start,) = [start for start in TESTS if command.startswith(start)]
    module = inspect.getmodule(TESTS[start])
    assert module is not None
    code = "".join(map(source, (module, jobs, cluster, disturbed)))
    for word in re.split(r"[\s=,\"/]+", FREE.sub("", command)):
        assert word in code or word == "python", (word, module.__name__)


def test_the_scripts_that_the_page_names_are_all_that_there_are() -> None:
    named = set(re.findall(r"`(\w+\.sbatch)`", PAGE))
    assert named == {path.name for path in (ROOT / "examples" / "slurm").iterdir()}
