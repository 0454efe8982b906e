"""Files that exist whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a fresh path beside ``path`` to write to; rename it onto ``path`` when all went well.

    A reader never meets half a file. The suffix is kept, because writers choose a format by it. If
    the block raises, ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def written_for_good(path: Path) -> Iterator[BinaryIO]:
    """As ``written_whole``, but what it yields is open, and on the disk before it gets its name.

    Where the file system can (Linux: ext4, xfs, tmpfs, ...), the file has no name at all until it
    is whole: a process that is killed leaves nothing. Elsewhere it would leave a hidden file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{uuid4().hex}{path.suffix}")
    with _open_nameless(path.parent) or open(fresh, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not fresh.exists():
                # With a directory given, Python follows the link, as linkat(2) says for O_TMPFILE.
                os.link(f"/proc/self/fd/{file.fileno()}", fresh, src_dir_fd=0, follow_symlinks=True)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _open_nameless(folder: Path) -> BinaryIO | None:
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        descriptor = os.open(folder, flag | os.O_RDWR, 0o666)
    except OSError:  # this file system cannot
        return None
    return open(descriptor, "wb")


def _sync_folder(folder: Path) -> None:
    """Have the name survive a power cut; not every file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)
