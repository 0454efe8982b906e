"""One SLURM for all tests here; they skip where there can be none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, can_shape_links, missing
from zoo.data.photograph_file import ensure_photographs


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"no SLURM can be started: {reason}")
    with Cluster(n_nodes=3, cpus_per_node=4, with_links=can_shape_links()) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The session's cluster, with idle nodes and empty node-local folders."""
    yield running_cluster
    running_cluster.clear()


@pytest.fixture(scope="session")
def photographs(running_cluster: Cluster) -> Path:
    path = running_cluster.shared / "photographs.h5"
    ensure_photographs(path)
    return path
