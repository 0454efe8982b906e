"""How errors name many things at once."""

from __future__ import annotations

from collections.abc import Sequence


def some_of(names: Sequence[str]) -> str:
    """The first three, and how many more.

    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    >>> some_of(["a"])
    'a'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
