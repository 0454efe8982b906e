"""The pre-flight alone, as a program: `python -m tests.slurm.check_launch KEY=VALUE ...`."""

from __future__ import annotations

import os
import sys
from time import perf_counter
from typing import Any

from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.preflight import preflight


def main() -> None:
    given: dict[str, Any] = dict(argument.split("=", 1) for argument in sys.argv[1:])
    for name, kind in (("num_nodes", int), ("timeout_s", float)):
        if name in given:
            given[name] = kind(given[name])
    start_s = perf_counter()
    try:
        agreement = preflight(**given)
    except GradSchedError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    took_s = perf_counter() - start_s
    print(f"agreed {agreement} port {os.environ.get('MASTER_PORT')} took {took_s:.3f} s")


if __name__ == "__main__":
    main()
