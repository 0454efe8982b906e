"""The photographs, written once a session, and the programs, run inside the test's process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from zoo.data.photograph_file import ensure_photographs


@pytest.fixture(scope="session")
def photographs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "photographs.h5"
    ensure_photographs(path)
    return path


@pytest.fixture
def clean_process() -> Iterator[None]:
    """Give back the environment, threads, loggers and Hydra state that a program changes."""
    environment, n_threads = dict(os.environ), torch.get_num_threads()
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(n_threads)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def program(
    clean_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Path]:
    """`program(main, name, *overrides)` runs a program as its command would; gives its run dir."""

    def run(main: Callable[[], None], run_name: str, *overrides: str) -> Path:
        run_dir = tmp_path / run_name
        monkeypatch.setattr(sys, "argv", ["program", *overrides, f"hydra.run.dir={run_dir}"])
        main()
        return run_dir

    return run
