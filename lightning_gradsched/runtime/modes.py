"""What goes on past the end of backward: reductions left open, gradients a step late, shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.collectives import AllReduce, Collectives
from lightning_gradsched.runtime.due_updates import OverlappedOptimizer
from lightning_gradsched.runtime.gathered_weights import GatheredWeights, Named
from lightning_gradsched.runtime.inquiry import Inquiry
from lightning_gradsched.runtime.lag import LaggedLaunches
from lightning_gradsched.runtime.launches import Launches
from lightning_gradsched.runtime.norm_watch import NormWatch
from lightning_gradsched.runtime.open_groups import OpenGroups
from lightning_gradsched.runtime.scatter import ScatterTransport
from lightning_gradsched.runtime.scattered_gradient import open_views
from lightning_gradsched.runtime.sharding import ShardedOptimizer
from lightning_gradsched.runtime.step_in_part import StepInPart


def launches_of(
    config: GradSchedConfig, network: AllReduce, collectives: Collectives
) -> Launches | None:
    """Of another kind than the usual one, where ``config`` asks for it."""
    return LaggedLaunches(network, collectives.begin_sum) if config.gradient_lag else None


class Modes:
    """Of one engine; by default there are none, and nothing here is called in a step.

    ``plan``: the plan in force; ``params``: what is reduced, by name, now and later; ``norms``:
    where it is to be found out whether groups shall travel in halves.
    """

    def __init__(
        self,
        module: nn.Module,
        config: GradSchedConfig,
        collectives: Collectives,
        launches: Launches,
        params: Mapping[str, Tensor],
        plan: Callable[[], GroupPlan | None],
        norms: NormWatch | None = None,
    ) -> None:
        self._config = config
        self._collectives = collectives
        self._launches = launches
        self._params = params
        self._plan = plan
        self._optimizers: list[StepInPart] = []
        self._weights: GatheredWeights | None = None
        self._lag = launches if isinstance(launches, LaggedLaunches) else None
        if config.overlap_forward:
            launches.open_groups = OpenGroups(module, launches.wait)
            launches.open_groups.norms = norms
        if config.scatter_gradients:
            _check_on_cpu(module, collectives)
        if launches.open_groups is not None and (config.scatter_gradients or norms is not None):
            launches.open_groups.inquiry = inquiry = Inquiry(collectives)
            launches.scatter = ScatterTransport(
                collectives, launches.transport, inquiry.exchange, partial(open_views, inquiry)
            )
            launches.transport = launches.scatter
        if config.shard_optimizer:
            self._weights = GatheredWeights(module, collectives)

    def __bool__(self) -> bool:
        """Whether the engine has any."""
        return any((self._lag, self._weights, self._launches.open_groups is not None))

    def overlap(self, optimizer: Optimizer) -> None:
        """See ``GradientScheduler.overlap``."""
        open_groups = self._launches.open_groups
        if open_groups is None:
            raise _not_set("overlap(optimizer)", "overlap_forward")
        trusted = self._config.per_parameter_optimizers
        self._optimizers.append(OverlappedOptimizer(optimizer, open_groups, trusted))
        if open_groups.norms is not None:
            open_groups.norms.is_of_use = True

    def shard(self, optimizer: Optimizer) -> None:
        """See ``GradientScheduler.shard``."""
        if self._weights is None:
            raise _not_set("shard(optimizer)", "shard_optimizer")
        trusted = self._config.per_parameter_optimizers
        sharded = ShardedOptimizer(
            optimizer, self._weights, self._groups_by_need, self._collectives, trusted
        )
        self._optimizers.append(sharded)

    def before_backward(self) -> None:
        """From a hook of a backward, before all else."""
        if self._lag is not None:
            self._lag.backward_begins()
        self.flush()

    def before_skipped_backward(self) -> None:
        if self._lag is not None:
            self._lag.skips_backward()

    def flush(self) -> None:
        """See ``GradientScheduler.flush``."""
        if self._launches.open_groups is not None:
            self._launches.open_groups.flush()
        if self._weights is not None:
            self._weights.flush()

    def wait_for_all(self) -> None:
        """As ``flush``, and for the gradients that the next backward gives out."""
        self.flush()
        if self._lag is not None:
            self._lag.settle()

    @property
    def n_open(self) -> int:
        """Groups, or messages of weights, that the next forward waits for, on this rank, now."""
        n_weights = 0 if self._weights is None else self._weights.n_open
        return n_weights + len(self._launches.open_groups or ())

    @property
    def has_in_flight(self) -> bool:
        return self._weights is not None and self._weights.has_in_flight

    def lagged_state(self) -> dict[str, Tensor] | None:
        """See ``GradientScheduler.lagged_state``."""
        return None if self._lag is None else self._lag.state()

    def restore_lagged(self, state: Mapping[str, Tensor]) -> None:
        """See ``GradientScheduler.restore_lagged``."""
        if self._lag is None:
            raise GradSchedError(
                "restore_lagged(state): expected gradient_lag=1, got 0: set it in GradSchedConfig"
            )
        self._lag.restore(state, self._params)

    def settle(self) -> None:
        """Wait for all that is under way, but for what can come no more."""
        open_groups = self._launches.open_groups
        if open_groups is not None and not open_groups.has_failed:
            open_groups.flush()
        if self._weights is not None and not self._weights.has_failed:
            self._weights.flush()
        if self._lag is not None:
            self._lag.settle()

    def end(self) -> None:
        """Let go of what is still under way, and of all hooks."""
        if self._launches.open_groups is not None:
            self._launches.open_groups.abandon()
            self._launches.open_groups.detach()
            self._launches.open_groups = None
        if self._weights is not None:
            self._weights.detach()
            self._weights = None
        for optimizer in self._optimizers:
            optimizer.detach()
        self._optimizers.clear()

    def _groups_by_need(self) -> Sequence[Sequence[Named]]:
        """Those of the plan, the last that backward comes to first: forward begins with it.

        What has been unfrozen since it was made goes ahead, each parameter by itself.
        """
        plan = self._plan()
        groups = plan.groups[::-1] if plan is not None else ()
        planned = {name for group in groups for name in group}
        late = ((name,) for name in self._params if name not in planned)
        return [[(name, self._params[name]) for name in group] for group in (*late, *groups)]


def _check_on_cpu(module: nn.Module, collectives: Collectives) -> None:
    devices = sorted({param.device.type for param in module.parameters()})
    if collectives.backend != "gloo" or devices != ["cpu"]:
        raise GradSchedError(
            "scatter_gradients: expected the gloo backend and parameters on the CPU, got"
            f" {collectives.backend} and parameters on {devices}: leave scatter_gradients out"
        )


def _not_set(call: str, field: str) -> GradSchedError:
    return GradSchedError(
        f"{call}: expected {field}=True, got False: set it in GradSchedConfig, or leave the call"
        " out"
    )
