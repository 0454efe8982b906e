"""A small set of shards, written once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo.data.shardset import write_set
from zoo.data.hdf5 import HDF5Samples, open_samples


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 samples in five shards; read it, leave it as it is."""
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder)
    return folder


@pytest.fixture
def samples(shards: Path) -> Iterator[HDF5Samples]:
    dataset = open_samples(shards)
    yield dataset
    dataset.close()
