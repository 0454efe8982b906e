"""A progress bar for long work in a terminal; nothing where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

from rich.progress import track

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, label: str = "Working") -> Iterator[Item]:
    """The items, with a bar on stderr if that is a terminal."""
    from rich.console import Console

    shown = sys.stderr.isatty()
    return iter(track(items, label, total=total, console=Console(stderr=True), disable=not shown))


def labelled(label: str) -> partial[Iterator[Item]]:
    """`progress` with this label, for functions that take one."""
    return partial(progress, label=label)
