"""Times all-reduces over a ladder of sizes on the real process group."""

from __future__ import annotations

import os
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from lightning_gradsched.core.cost import GOOD_FIT, CostModel, fit_all_reduce
from lightning_gradsched.core.profile import (
    ALL_REDUCE,
    HIERARCHICAL_ALL_REDUCE,
    NetworkProfile,
    Sample,
)
from lightning_gradsched.runtime import calibration_file
from lightning_gradsched.runtime.calibration_file import CalibrationKey
from lightning_gradsched.runtime.collectives import AllReduce, Collectives
from lightning_gradsched.runtime.topology import Place, nodes_of, place_of

GROWTH = 4
LADDER_NBYTES = tuple(2**10 * GROWTH**k for k in range(9))  # 1 KiB to 64 MiB
N_ALWAYS = 3  # sizes that are measured whatever they take
REPEATS = 5
# Small sizes are cheap, and on busy hosts the most uneven: more of them, for so long at most.
CHEAP_REPEATS = 25
CHEAP_S = 0.05
# Of sizes that need not be measured: the fewest whose median a single outlier does not move.
MIN_REPEATS = 3
# A size whose all-reduce takes so many times as long as the smallest measures bandwidth ...
BANDWIDTH_RATIO = 8
# ... that of groups, if it is near theirs: below, TCP's start and what a link lets through after
# idling count (on a shaped 100 Mbit/s link, 256 KiB went at 66 Mbit/s).
BANDWIDTH_NBYTES = 4 * 2**20
FAST_BUDGET_S = 1.0
SLOW_BUDGET_S = 5.0

# Times so many all-reduces of so many bytes.
Timer = Callable[[int, int], list[float]]


def places_of(collectives: Collectives) -> list[Place]:
    """Each rank's place. Collective."""
    places: list[Place] = collectives.gather(place_of(os.environ, socket.gethostname()))
    return places


def network_profile(
    collectives: Collectives,
    places: Sequence[Place],
    folder: Path | None,
    hierarchical: AllReduce | None = None,
) -> NetworkProfile:
    """The network as measured now, or as ``folder`` has it from at most a week ago. Collective.

    With samples of the ``hierarchical`` all-reduce too, where there is one; both of the same day.

    Rank 0 alone reads and writes, and what it read goes to all: they decide alike though the others
    see no such folder, or name another. A file that is no good is warned of and written anew.
    """
    key = CalibrationKey.of(places, collectives.backend)
    folder = folder if collectives.rank == 0 else None
    text = collectives.from_rank_0(None if folder is None else calibration_file.read(folder, key))
    if text is not None:
        stored = NetworkProfile.from_json(text)
        if hierarchical is None or _has(stored, HIERARCHICAL_ALL_REDUCE):
            return stored
    network = calibrate(collectives, places)
    if hierarchical is not None:
        network = _with_hierarchical(network, collectives, hierarchical)
    if folder is not None:
        calibration_file.write(folder, key, network)
    return network


def _has(network: NetworkProfile, collective: str) -> bool:
    return any(sample.collective == collective for sample in network.samples)


def _with_hierarchical(
    network: NetworkProfile, collectives: Collectives, hierarchical: AllReduce
) -> NetworkProfile:
    time_hierarchical = partial(collectives.time_all_reduce, network=hierarchical)
    samples = _ladder(collectives, HIERARCHICAL_ALL_REDUCE, time_hierarchical, perf_counter)
    return replace(network, samples=(*network.samples, *samples))


def cost_of(
    network: NetworkProfile, collective: str = ALL_REDUCE, *, warns: bool = False
) -> CostModel:
    """The all-reduce's cost model; ``warns`` where no straight line fits. Not collective."""
    fit = fit_all_reduce(network, collective)
    if warns and network.world_size > 1 and not fit.is_good:
        warnings.warn(
            f"no latency and bandwidth fit the all-reduce of {network.world_size} ranks: the best"
            f" line is off by {fit.worst_error:.0%} at {fit.worst_nbytes} bytes, more than"
            f" {GOOD_FIT:.0%}. Plans are made from the measured times, interpolated. Is there other"
            " load on the machines or the network? `gradsched doctor` measures again.",
            stacklevel=2,
        )
    return fit.model


def calibrate(
    collectives: Collectives, places: Sequence[Place], *, now: Callable[[], float] = perf_counter
) -> NetworkProfile:
    """Time all-reduces of growing sizes, each sample the median over ranks. Collective."""
    samples = _ladder(collectives, ALL_REDUCE, collectives.time_all_reduce, now)
    ranks_on = Counter(nodes_of(places))
    return NetworkProfile(
        collectives.backend,
        collectives.world_size,
        n_nodes=len(ranks_on),
        ranks_per_node=max(ranks_on.values()),
        samples=tuple(samples),
    )


def _ladder(
    collectives: Collectives, collective: str, timer: Timer, now: Callable[[], float]
) -> list[Sample]:
    """Samples of growing sizes.

    Stops after a second, or after five where a second reaches no size that measures the bandwidth
    of groups: a slow link. Each size takes at most ``GROWTH`` times as long as the one before, if
    latency and bandwidth are all there is; no size is begun that might not end in time.
    The smallest three are always measured, and take longer where one all-reduce takes 0.4 s.
    """
    start_s = now()
    elapsed_s = each_s = 0.0  # since the start; of one repeat at the last size; both agreed
    samples: list[Sample] = []
    medians: list[float] = []
    for nbytes in LADDER_NBYTES:
        left_s = _budget_s(medians) - elapsed_s
        n_owed = N_ALWAYS - len(medians)
        if n_owed > 0:
            seconds = _time_size(collectives, timer, nbytes, 1, left_s / n_owed, now)
        elif left_s >= (1 + MIN_REPEATS) * GROWTH * each_s:
            # No more repeats than needed where they would turn a fast link into a slow one.
            spare_s = max(FAST_BUDGET_S - elapsed_s, 0.0) or left_s
            seconds = _time_size(collectives, timer, nbytes, MIN_REPEATS, spare_s, now)
        else:
            break
        samples += [Sample(collective, nbytes, s) for s in seconds]
        medians.append(median(seconds))
        ended_s = _slowest(collectives, now() - start_s)
        each_s = (ended_s - elapsed_s) / (1 + len(seconds))
        elapsed_s = ended_s
    return samples


def _budget_s(medians: Sequence[float]) -> float:
    if not medians or LADDER_NBYTES[len(medians) - 1] < BANDWIDTH_NBYTES:
        return SLOW_BUDGET_S
    return FAST_BUDGET_S if medians[-1] >= BANDWIDTH_RATIO * medians[0] else SLOW_BUDGET_S


def _time_size(
    collectives: Collectives,
    timer: Timer,
    nbytes: int,
    least: int,
    spare_s: float,
    now: Callable[[], float],
) -> list[float]:
    """Seconds of ``least`` repeats or as many more as fit into ``spare_s``, after a first."""
    start_s = now()
    timer(nbytes, 1)  # warms up
    warm_up_s = max(1e-6, _slowest(collectives, now() - start_s))
    # Less the one that is over, and as much for agreeing.
    fitting = int(spare_s / warm_up_s) - 3
    wanted = max(REPEATS, min(CHEAP_REPEATS, int(CHEAP_S / warm_up_s)))
    repeats = max(least, min(wanted, fitting))
    return collectives.median(timer(nbytes, repeats))


def _slowest(collectives: Collectives, seconds: float) -> float:
    """The most of all ranks' ``seconds``, to the microsecond: what follows is decided alike."""
    (most_us,) = collectives.max([int(1e6 * seconds)])
    return most_us * 1e-6
