"""Whether threads of an engine's are left."""

from __future__ import annotations

import threading
from time import monotonic, sleep

# A thread that has been told to end, or is past its last line, may have to wait for a processor.
_LIMIT_S = 20.0


def left_threads(of_name: str) -> list[str]:
    """The threads with ``of_name`` in their names that do not end by themselves in time."""
    until_s = monotonic() + _LIMIT_S
    while True:
        left = [thread.name for thread in threading.enumerate() if of_name in thread.name]
        if not left or monotonic() > until_s:
            return left
        sleep(0.01)
