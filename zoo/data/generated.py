"""Data sets that are made here instead of downloaded: written once, by one process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from zoo.data.manifest import Manifest
from zoo.data.shards import Sample, ShardWriter, generate_shards
from zoo.errors import DataFileError, UserError
from zoo.progress import labelled


def generate_alone(
    writer: ShardWriter, make_sample: Callable[[int], Sample], n_processes: int, label: str
) -> Manifest:
    """Write what is missing in the writer's folder, with a progress bar. One process calls it.

    Raises:
        DataFileError, DiskFullError: the folder holds something else, or cannot be written to.
        UserError: another process is at it, or one of the processes died.
    """
    if not writer.open_shards():
        return writer.finish()
    with _alone_in(writer.folder):
        try:
            return generate_shards(writer, make_sample, n_processes, labelled(f"{label} (shards)"))
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that wrote shards to {writer.folder} died (out of memory?). Finished "
                f"shards are kept. Next, run it again with fewer than n_processes={n_processes}."
            ) from error


def require_finished(writer: ShardWriter, options: str) -> Manifest:
    """The manifest of a finished data set; `options` make it with `zoo.data.generate`.

    Raises:
        DataFileError: it is not finished, or another one.
    """
    if missing := writer.open_shards():
        raise DataFileError(
            f"{writer.folder} is not finished: {len(missing)} of {writer.n_shards} shards are "
            f"missing. Next, on this machine, python -m zoo.data.generate {options} "
            f"folder={writer.folder}"
        )
    return writer.finish()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep a second process from writing the same shards; a kill frees the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".generating").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is generating in {folder}. Next, wait for it and run the same "
                "command again."
            ) from None
        except OSError:
            # Some network file systems have no locks; then it is up to the user.
            pass
        yield
