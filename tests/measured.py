"""What a test of a fault has measured, for the table of docs/reliability.md.

``python -m benchmarks.faults`` runs the tests with this as a plugin of pytest's and with
``GRADSCHED_FAULTS`` naming a file, to which a line is added for each measurement. Without it,
nothing is kept.
"""

from __future__ import annotations

import json
import os
from time import monotonic
from typing import Any

from _pytest.raises import RaisesExc

VARIABLE = "GRADSCHED_FAULTS"

# How long the functions of the ranks that were run last have taken.
ranks_took_s = 0.0


def record(message: str, seconds: float | None = None, lost_steps: int = 0) -> None:
    """What the user saw, how long after the fault, and how many steps have to be done again.

    ``seconds``: where None, what the ranks took that have raised ``message``: the fault was there
    from the start.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    line = {
        "test": os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)"),
        "message": message,
        "seconds": ranks_took_s if seconds is None else seconds,
        "lost_steps": lost_steps,
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_configure() -> None:
    """Have each ``with pytest.raises(...)`` record the error that it met."""
    began_s: dict[int, float] = {}
    enter, leave = RaisesExc.__enter__, RaisesExc.__exit__

    def timed_enter(self: Any) -> Any:
        began_s[id(self)] = monotonic()
        return enter(self)

    def timed_exit(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        if error is not None:
            record(f"{type(error).__name__}: {error}", monotonic() - began_s[id(self)])
        return leave(self, kind, error, trace)

    RaisesExc.__enter__, RaisesExc.__exit__ = timed_enter, timed_exit  # type: ignore[method-assign]
