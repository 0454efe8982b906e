"""How gradients are summed over the ranks, at what cost and why; decided alike on every rank."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lightning_gradsched.config import MIB, GradSchedConfig
from lightning_gradsched.core.cost import AlphaBeta, CostModel
from lightning_gradsched.core.profile import (
    ALL_REDUCE,
    HIERARCHICAL_ALL_REDUCE,
    NetworkProfile,
)
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.calibration import cost_of, network_profile, places_of
from lightning_gradsched.runtime.collectives import AllReduce, Collectives
from lightning_gradsched.runtime.hierarchical import HierarchicalAllReduce, layout_of
from lightning_gradsched.runtime.topology import nodes_of

FLAT, HIERARCHICAL = "flat", "hierarchical"
COLLECTIVE = {FLAT: ALL_REDUCE, HIERARCHICAL: HIERARCHICAL_ALL_REDUCE}
# Given to planners that look at no cost.
UNKNOWN_NETWORK = AlphaBeta(alpha_s=0.0, beta_s_per_byte=0.0)
# Of about this size are the groups by which flat and hierarchical are compared.
COMPARED_NBYTES = 4 * MIB
# A gain that is no noise, and worth three threads.
LEAST_GAIN = 0.1

_log = logging.getLogger(__name__)


class Reduction:
    """What carries the gradients. All ranks must make, use and close it alike.

    Attributes:
        name: ``"flat"`` or ``"hierarchical"``; ``why`` says why in words.
        carrier: reduces the groups.
        network: what was measured, where ``measures``; ``cost`` is that of ``carrier``.

    Raises:
        GradSchedError: on every rank, if a hierarchy was asked for that cannot be had.
    """

    def __init__(
        self,
        module: nn.Module,
        config: GradSchedConfig,
        collectives: Collectives,
        *,
        measures: bool,
    ) -> None:
        self.network: NetworkProfile | None = None
        self.cost: CostModel = UNKNOWN_NETWORK
        self._hierarchical: HierarchicalAllReduce | None = None
        wanted = config.reduction == HIERARCHICAL
        places = places_of(collectives) if measures or wanted else []
        self.name, self.why = FLAT, _obstacle(module, config, collectives, nodes_of(places))
        if not self.why:
            self._hierarchical = HierarchicalAllReduce(
                collectives, nodes_of(places), config.stall_timeout_s
            )
            self.name, self.why = HIERARCHICAL, "as set"
        if measures:
            folder = None if config.calibration_dir is None else Path(config.calibration_dir)
            self.network = network_profile(collectives, places, folder, self._hierarchical)
            if self._hierarchical is not None and not wanted:
                self.name, self.why = faster_way(module, collectives, self.network)
            # "auto" does not rely on a fit: plans are tried on the job.
            warns = collectives.rank == 0 and config.planner != "auto"
            self.cost = cost_of(self.network, COLLECTIVE[self.name], warns=warns)
        # Where nobody asked and there was no choice, there is nothing to tell.
        if collectives.rank == 0 and (wanted or self._hierarchical is not None):
            _log.info("gradients are reduced %s: %s", self.name, self.why)
        if self.name == FLAT:
            self.close()
        self.carrier: AllReduce = self._hierarchical or collectives

    def close(self) -> None:
        """End the hierarchy's threads. Idempotent."""
        if self._hierarchical is not None:
            self._hierarchical.close()
            self._hierarchical = None


def _obstacle(
    module: nn.Module, config: GradSchedConfig, collectives: Collectives, nodes: Sequence[int]
) -> str:
    """Why there is nothing to choose: gradients go flat. Empty where a hierarchy can be had."""
    if config.reduction == FLAT:
        return "as set"
    if config.scatter_gradients:
        return "gradients are scattered over all ranks"
    if not nodes:
        return "nothing is measured"
    if not layout_of(nodes).is_hierarchy:
        return f"{len(nodes)} ranks on {len(set(nodes))} nodes make no hierarchy"
    if config.reduction == "auto" and torch.are_deterministic_algorithms_enabled():
        return "the clock would choose, and deterministic algorithms are asked for"
    on_cpu = all(param.device.type == "cpu" for param in module.parameters())
    if collectives.max([int(not on_cpu or collectives.backend != "gloo")]) == [0]:
        return ""
    if config.reduction == HIERARCHICAL:
        raise GradSchedError(
            'reduction="hierarchical" needs the gloo backend and parameters on the CPU, got'
            f" {collectives.backend} and parameters on"
            f" {sorted({param.device.type for param in module.parameters()})}: choose"
            ' reduction="flat" (NCCL finds the nodes by itself)'
        )
    return f"{collectives.backend} finds the nodes by itself, if at all"


def faster_way(
    module: nn.Module, collectives: Collectives, network: NetworkProfile
) -> tuple[str, str]:
    """The faster way for a typical group, by rank 0's word, and the measured reason."""
    model_nbytes = sum(param.nbytes for param in module.parameters() if param.requires_grad)
    nbytes = group_nbytes(model_nbytes)
    flat_s, hierarchical_s = (
        cost_of(network, collective).all_reduce_s(nbytes) for collective in COLLECTIVE.values()
    )
    name = HIERARCHICAL if hierarchical_s < (1 - LEAST_GAIN) * flat_s else FLAT
    why = (
        f"{nbytes / MIB:.3g} MiB take {1e3 * hierarchical_s:.3g} ms through the nodes and"
        f" {1e3 * flat_s:.3g} ms flat"
    )
    chosen: tuple[str, str] = collectives.from_rank_0((name, why))
    return chosen


def group_nbytes(model_nbytes: int) -> float:
    """The bytes of a group by which the ways are compared: the model in equal parts of about 4 MiB.

    >>> group_nbytes(10 * MIB) / MIB, group_nbytes(1000)
    (5.0, 1000.0)
    """
    return model_nbytes / max(1, round(model_nbytes / COMPARED_NBYTES))
