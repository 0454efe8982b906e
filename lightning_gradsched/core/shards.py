"""Which rank keeps what, where each keeps a part."""

from __future__ import annotations

from collections.abc import Sequence


def owners(nbytes: Sequence[int], loads_nbytes: Sequence[int]) -> tuple[int, ...]:
    """The rank that each gets: the largest first, to whoever has least, the first of equals.

    ``loads_nbytes``: what each rank has already. No rank ends up with more than the mean and the
    largest (Graham's bound for this rule, SIAM J. Appl. Math. 17, 1969, is 4/3 of the best).

    >>> owners([1, 5, 3, 3], [0, 0])
    (0, 0, 1, 1)
    >>> owners([4], [4, 0])
    (1,)
    """
    loads = list(loads_nbytes)
    result = [0] * len(nbytes)
    for index in sorted(range(len(nbytes)), key=lambda i: (-nbytes[i], i)):
        result[index] = min(range(len(loads)), key=lambda rank: (loads[rank], rank))
        loads[result[index]] += nbytes[index]
    return tuple(result)
