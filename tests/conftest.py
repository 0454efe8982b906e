"""What every test can rely on, whichever ran before it."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment_as_found() -> Iterator[None]:
    """Takes back what a test left in the environment, Lightning's MASTER_ADDR for one.

    Programs that a later test starts would inherit it, and a launch would look for rank 0 there.
    """
    found = dict(os.environ)
    yield
    for name in os.environ.keys() - found.keys():
        del os.environ[name]
    os.environ.update(found)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares a file, or the one SLURM, on one worker of pytest-xdist; SLURM is slow."""
    for item in items:
        on_slurm = item.path.parent.name == "slurm"
        group = "slurm" if on_slurm else str(item.path.relative_to(item.config.rootpath))
        item.add_marker(pytest.mark.xdist_group(group))
        if on_slurm:
            item.add_marker(pytest.mark.slow)
