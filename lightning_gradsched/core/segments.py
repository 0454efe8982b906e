"""Where a compiled backward, which gives out its gradients at once, is to be cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def segment_ends(order: Sequence[str], groups: Iterable[Sequence[str]]) -> tuple[int, ...]:
    """After which positions of ``order`` to cut, so that each group can leave when it is whole.

    ``order``: the parameters of one compiled graph in the order in which its backward would have
    their gradients; ``groups`` may have others besides. There is nothing to cut after the last.

    >>> segment_ends(["head", "middle", "stem"], [["head"], ["stem", "middle"]])
    (0,)
    >>> segment_ends(["middle", "stem"], [["head", "middle"], ["stem"]])
    (0,)
    """
    position = {name: i for i, name in enumerate(order)}
    met = ([position[name] for name in group if name in position] for group in groups)
    ends = {max(positions) for positions in met if positions}
    return tuple(sorted(ends - {len(order) - 1}))
