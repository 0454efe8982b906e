"""SafeCheckpointIO: checkpoints that are whole, verified, and written while training goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.plugins import TorchCheckpointIO
from typing_extensions import override

from lightning_gradsched import checkpoint_file
from lightning_gradsched.errors import CheckpointError

# Copies of a checkpoint that wait in host memory, the one that is being written included.
MAX_IN_MEMORY = 2


class SafeCheckpointIO(CheckpointIO):
    """What ``gradsched`` reads and writes checkpoints with, where the Trainer was given no plugin.

    A file is written without a name, put on the disk, and only then named: it is whole or not
    there. It is checked bit for bit when it is read, and nothing in it is run. Training waits for
    the copy to host memory alone; the rest is done by a thread. What goes wrong there is raised by
    the next ``save_checkpoint``, ``flush`` or ``teardown``, and the file before stays as it was.

    Paths with ``://`` (object stores) are left to Lightning's own plugin.

    Args:
        keep: how many files that had the same name are kept, the newest included: ``last.ckpt``,
            ``last.before1.ckpt``, ...
        in_background: False: ``save_checkpoint`` returns when the file is on the disk.

    Raises:
        ValueError: ``keep`` is less than 1.
    """

    def __init__(self, *, keep: int = 2, in_background: bool = True) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected 1 file or more, got {keep}")
        self._keep = keep
        self._in_background = in_background
        self._remote = TorchCheckpointIO()
        self._thread: ThreadPoolExecutor | None = None
        self._jobs: deque[Future[None]] = deque()
        self._fault: CheckpointError | None = None
        self.blocked_s = 0.0  # how long the last save kept its caller

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        start_s = time.perf_counter()
        if storage_options is not None or _is_remote(path):
            self._remote.save_checkpoint(checkpoint, path, storage_options)
            return
        self._wait(MAX_IN_MEMORY - 1)
        self._raise_fault()
        content = checkpoint_file.in_memory(checkpoint)
        self._begin(lambda: self._write(Path(path), content))
        if not self._in_background:
            self.flush()
        self.blocked_s = time.perf_counter() - start_s

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint, on the CPU. ``weights_only=False`` alone lets it run what it holds."""
        self.flush()
        if weights_only is False or _is_remote(path):
            trusted = weights_only is False
            return self._remote.load_checkpoint(path, map_location, weights_only=not trusted)
        if not Path(path).exists():
            raise FileNotFoundError(f"Checkpoint file not found: {path}")
        return checkpoint_file.read(Path(path))

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Once all that was saved before is on the disk; not if that failed."""
        if _is_remote(path):
            self._remote.remove_checkpoint(path)
        else:
            before = list(self._jobs)
            self._begin(lambda: self._remove(Path(path), before))

    def flush(self) -> None:
        """Wait until all is on the disk; raises ``CheckpointError`` if something could not be."""
        self._wait(0)
        self._raise_fault()

    @override
    def teardown(self) -> None:
        """End the thread when it has done its work. The next save begins another."""
        self._wait(0)
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._raise_fault()

    def _begin(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="gradsched: checkpoints")
        self._jobs.append(self._thread.submit(job))

    def _wait(self, most: int) -> None:
        """Until at most so many jobs are not done."""
        while len(self._jobs) > most:
            try:
                self._jobs[0].result()
            except Exception as error:
                self._fault = self._fault or CheckpointError(str(error))
                self._fault.__cause__ = error
            self._jobs.popleft()

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _write(self, path: Path, content: Any) -> None:
        try:
            checkpoint_file.write(path, content, keep=self._keep)
        except Exception as error:
            last = f"{path} is as it was" if path.exists() else "there is none of that name"
            raise CheckpointError(
                f"the checkpoint {path} could not be written: {type(error).__name__}: {error}."
                f" What was saved before is whole ({last}). Free some space or choose another"
                " folder, and resume from there."
            ) from error

    def _remove(self, path: Path, before: Sequence[Future[None]]) -> None:
        if any(job.exception() is not None for job in before):
            return
        if path.is_dir():
            self._remote.remove_checkpoint(path)
            return
        for age in range(self._keep):
            checkpoint_file.previous(path, age).unlink(missing_ok=True)


def _is_remote(path: Any) -> bool:
    return "://" in str(path)
