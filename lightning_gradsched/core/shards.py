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


def owners_by_group(groups_nbytes: Sequence[Sequence[int]], n_ranks: int) -> list[tuple[int, ...]]:
    """The rank that each gets of several groups: each group is balanced in itself.

    As groups travel one by one. Its largest part goes to whoever has least of the others.

    >>> owners_by_group([[5, 3, 3], [4], [1]], 2)
    [(1, 0, 0), (1,), (0,)]
    """
    loads = [0] * n_ranks
    result = []
    for nbytes in groups_nbytes:
        parts = owners(nbytes, [0] * n_ranks)
        sizes = [
            sum(n for n, part in zip(nbytes, parts, strict=True) if part == p)
            for p in range(n_ranks)
        ]
        by_size = sorted(range(n_ranks), key=lambda part: (-sizes[part], part))
        by_load = sorted(range(n_ranks), key=lambda rank: (loads[rank], rank))
        rank_of = dict(zip(by_size, by_load, strict=True))
        for part, rank in rank_of.items():
            loads[rank] += sizes[part]
        result.append(tuple(rank_of[part] for part in parts))
    return result


def half_nbytes(nbytes: Sequence[int], ranks: Sequence[int], n_ranks: int) -> float:
    """The bytes of a (ring) all-reduce that puts as many on the busiest link as one half does.

    In the first half each owner receives its part from all others, in the second they receive it
    from the owner. ``ranks``: the owner of each of ``nbytes``.

    >>> half_nbytes([6, 6], [0, 1], n_ranks=2), half_nbytes([12], [0], n_ranks=2)
    (6.0, 12.0)
    >>> half_nbytes([4, 4, 4], [0, 1, 2], n_ranks=3)
    6.0
    """
    own = [0] * n_ranks
    for size, rank in zip(nbytes, ranks, strict=True):
        own[rank] += size
    busiest = max((n_ranks - 1) * max(own), sum(own) - min(own))
    return busiest * n_ranks / (2 * max(1, n_ranks - 1))
