"""Files that exist whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def written_whole(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yield a fresh path beside `path` to write to; rename it onto `path` when the block succeeds.

    A rename within a folder is atomic, so several processes may do this at once: each reader sees
    one writer's whole file. The suffix is kept, because writers choose a format by it. If the block
    raises, `path` stays as it was and the fresh file is removed.

    Args:
        beside: the fresh path, in the same folder, for a writer that is alone with `path`: what a
            kill left there is then overwritten by the next run, instead of staying for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = beside or path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any], beside: Path | None = None) -> None:
    """Write `content` as indented JSON, whole or not at all; `beside` as in `written_whole`."""
    with written_whole(path, beside) as fresh:
        fresh.write_text(json.dumps(content, indent=2) + "\n")
