"""Ranks and nodes from the environment that each launcher leaves."""

from __future__ import annotations

import doctest

import pytest

from lightning_gradsched.errors import ProcessGroupError
from lightning_gradsched.runtime import topology
from lightning_gradsched.runtime.topology import (
    SLURM_PORTS,
    Launch,
    Place,
    launch_of,
    nodes_of,
    place_of,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
}
# As `srun -N2 -n4` leaves them; SLURM_JOB_NODELIST is wider where a step has part of the job.
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURMD_NODENAME": "n3",
}
BATCH_SCRIPT = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}


def test_doctests() -> None:
    assert doctest.testmod(topology).failed == 0


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (TORCHRUN, Place("box", "torchrun", "1")),
        (SRUN, Place("box", "slurm", "n3")),
        (SRUN | TORCHRUN, Place("box", "torchrun", "1")),
        ({k: v for k, v in SRUN.items() if k != "SLURMD_NODENAME"}, Place("box", "slurm", "1")),
        (BATCH_SCRIPT, Place("box")),
        ({"WORLD_SIZE": "2", "NODE_RANK": "0"}, Place("box")),
        ({}, Place("box")),
    ],
)
def test_place_of_each_launcher(environ: dict[str, str], place: Place) -> None:
    assert place_of(environ, "box") == place


@pytest.mark.parametrize(
    ("places", "nodes"),
    [
        # Two nodes' containers under one name, of unequal size.
        ([Place("box", "slurm", n) for n in ("n1", "n1", "n2")], [0, 0, 1]),
        ([Place("a"), Place("b"), Place("b")], [0, 1, 1]),
        # Not all ranks know: names count for all.
        ([Place("a", "torchrun", "0"), Place("a"), Place("b")], [0, 0, 1]),
        ([Place("a", "torchrun", "0"), Place("a", "slurm", "0")], [0, 0]),
    ],
)
def test_nodes_by_the_launcher_where_it_tells_of_all_ranks(
    places: list[Place], nodes: list[int]
) -> None:
    assert nodes_of(places) == nodes


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        (TORCHRUN, Launch(5, 8, 1, "n1", 29500)),
        (SRUN | TORCHRUN, Launch(5, 8, 1, "n1", 29500)),
        (SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1"}, Launch(2, 4, 0, "head", 1)),
        (BATCH_SCRIPT, None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, None),
    ],
)
def test_launch_of_each_launcher(environ: dict[str, str], launch: Launch | None) -> None:
    assert launch_of(environ) == launch


def test_a_slurm_steps_port_is_its_own() -> None:
    steps = [
        launch_of(SRUN | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in range(100, 400)
        for step in range(3)
    ]
    ports = {launch.port for launch in steps if launch is not None}
    assert len(ports) == 900
    assert ports <= set(SLURM_PORTS)
    assert all(launch is not None and launch.address == "n2" for launch in steps)


@pytest.mark.parametrize("environ", [TORCHRUN | {"RANK": "first"}, {"SLURM_STEP_NUM_TASKS": "2"}])
def test_a_launcher_that_says_no_numbers_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(ProcessGroupError, match="expected the launcher's variables"):
        launch_of(environ)
