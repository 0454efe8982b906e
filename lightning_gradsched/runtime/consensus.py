"""What the ranks agree on before the first gradient moves. Each function is collective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any, TypeVar, cast

from torch import Tensor

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.reasons import Fastest
from lightning_gradsched.errors import ConsensusError, PlanError
from lightning_gradsched.runtime.collectives import Collectives

Result = TypeVar("Result")
# What compares by itself; all else by its name.
_PLAIN = (str, int, float, tuple, type(None))


# Fields of the configuration that a rank may have for itself; all others decide what is sent.
LOCAL_SETTINGS = frozenset(
    {"record_every_n_steps", "trace_path", "stall_timeout_s", "calibration_dir"}
)


def settings_to_agree(config: GradSchedConfig) -> dict[str, Any]:
    """Every field that must be the same on all ranks, by name; a function by its own name."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {
        name: value if isinstance(value, _PLAIN) else _name_of(value)
        for name, value in values.items()
        if name not in LOCAL_SETTINGS
    }


def _name_of(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def check_settings(collectives: Collectives, settings: Mapping[str, Any]) -> None:
    """Raise ``ConsensusError`` on every rank unless all have the same settings.

    Comes first: the settings decide which collectives follow.
    """
    _check_same(collectives, dict(settings), "the settings", _explain_settings)


def check_parameters(collectives: Collectives, params: Mapping[str, Tensor]) -> None:
    """Raise ``ConsensusError`` on every rank unless all hold the same trainable parameters."""
    table = [
        [name, list(p.shape), str(p.dtype).removeprefix("torch."), list(p.stride())]
        for name, p in params.items()
    ]
    _check_same(collectives, table, "the trainable parameters", _explain_parameters)


def check_batches(collectives: Collectives, n_batches: float) -> None:
    """Raise ``ConsensusError`` on every rank unless all will run as many training batches."""
    _check_same(collectives, n_batches, "the number of batches", _explain_batches)


def check_same_plan(collectives: Collectives, plan: GroupPlan) -> None:
    """Raise ``ConsensusError`` on every rank unless all made the same plan."""
    _check_same(collectives, [plan.planner, plan.groups], "the plan", _explain_plan)


def on_all_or_none(collectives: Collectives, what: str, compute: Callable[[], Result]) -> Result:
    """``compute()`` where it works on all ranks; else a ``PlanError`` on all of who and why."""
    result, fault = None, ""
    try:
        result = compute()
    except Exception as error:  # whatever a user's function raises must reach every rank
        fault = f"{type(error).__name__}: {error}"
    if collectives.max([int(bool(fault))], f"the outcome of {what}") == [0]:
        return cast(Result, result)
    faults = collectives.gather(fault, f"the outcome of {what}")
    rank = next(i for i, text in enumerate(faults) if text)
    raise PlanError(f"{what} failed on rank {rank}: {faults[rank]}")


def agree_order(collectives: Collectives, names: Sequence[str], seen: Sequence[str]) -> list[str]:
    """One order of ``names`` for all ranks, out of the ready order that each has ``seen``.

    By mean position over the ranks that met the parameter, so ranks whose graphs differ agree too,
    at the cost of one all-reduce of two integers a parameter, whatever the number of ranks. What no
    rank met comes last, in reverse order of registration, as a plain chain of layers would have it.
    """
    position = {name: i for i, name in enumerate(seen)}
    local = [position.get(name, 0) for name in names] + [int(name in position) for name in names]
    sums = collectives.sum(local, "the agreement on the order of the parameters")
    total = dict(zip(names, sums[: len(names)], strict=True))
    count = dict(zip(names, sums[len(names) :], strict=True))
    registered = {name: i for i, name in enumerate(names)}

    def rank_of(name: str) -> tuple[bool, float, int]:
        met = count[name] > 0
        return not met, total[name] / count[name] if met else 0.0, -registered[name]

    return sorted(names, key=rank_of)


def agree_on_fastest(
    collectives: Collectives, steps: Sequence[int], seconds: Sequence[Sequence[float]]
) -> list[list[Fastest]]:
    """The least over the ranks of ``seconds`` of each group in each step, and the rank it is of.

    One all-reduce of an integer a group and step, whatever the number of ranks: nanoseconds and
    rank in one number, so that the least names its rank. ``ConsensusError`` on every rank unless
    all have recorded the same ``steps`` of as many groups.
    """
    recorded = [steps, [len(row) for row in seconds]]
    _check_same(collectives, recorded, "the recorded steps", _explain_recorded)
    n_ranks, rank = collectives.world_size, collectives.rank
    local = [-(int(1e9 * value) * n_ranks + rank) for row in seconds for value in row]
    least = iter(collectives.max(local) if local else [])
    return [[_fastest(-next(least), n_ranks) for _ in row] for row in seconds]


def _fastest(coded: int, n_ranks: int) -> Fastest:
    ns, rank = divmod(coded, n_ranks)
    return Fastest(1e-9 * ns, rank)


def _explain_recorded(recorded: Sequence[list[Any]]) -> str:
    other = next(rank for rank, value in enumerate(recorded) if value != recorded[0])
    return (
        "expected all ranks to have recorded the same steps, got steps"
        f" {recorded[0][0]} since the plan was made on rank 0 and {recorded[other][0]} on rank"
        f" {other}: give all ranks the same record_every_n_steps"
    )


def _check_same(
    collectives: Collectives, value: Any, subject: str, explain: Callable[[Sequence[Any]], str]
) -> None:
    """Compare digests by one small all-reduce; gather the values only to explain a difference."""
    canonical = json.dumps(value)
    digest = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:7], "big")
    what = f"the agreement on {subject}"
    low, high = collectives.min_and_max(digest, what)
    if low != high:
        texts = collectives.gather(canonical, what)
        raise ConsensusError(explain([json.loads(text) for text in texts]))


def _explain_settings(settings: Sequence[dict[str, Any]]) -> str:
    other = next(rank for rank, value in enumerate(settings) if value != settings[0])
    unlike = [
        f"{name} is {settings[0].get(name)!r} on rank 0 and {settings[other].get(name)!r} on rank"
        f" {other}"
        for name in settings[0]
        if settings[0].get(name) != settings[other].get(name)
    ]
    return f"the ranks have different settings: {'; '.join(unlike)}. Give all ranks the same."


def _explain_batches(n_batches: Sequence[float]) -> str:
    least = min(n_batches)
    return (
        f"expected all ranks to have as many training batches, got {list(n_batches)} by rank: those"
        " with more would wait for the others. Let Lightning's DistributedSampler cut the data"
        f" evenly (use_distributed_sampler=True), set Trainer(limit_train_batches={least:g}), or"
        " train on all of them by GradSchedStrategy(uneven_batches='active')."
    )


def _explain_parameters(tables: Sequence[list[list[Any]]]) -> str:
    other = next(rank for rank, table in enumerate(tables) if table != tables[0])
    ours, theirs = tables[0], tables[other]
    index = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return (
        f"the ranks hold different models: trainable parameter {index} is"
        f" {_describe(ours, index)} on rank 0 and {_describe(theirs, index)} on rank {other}."
        " Build the same model on every rank: same configuration, same code, same frozen layers."
    )


def _describe(table: list[list[Any]], index: int) -> str:
    if index >= len(table):
        return f"missing (it has {len(table)})"
    name, shape, dtype, stride = table[index]
    return f"{name!r} of shape {tuple(shape)}, {dtype}, strides {tuple(stride)}"


def _explain_plan(plans: Sequence[list[Any]]) -> str:
    other = next(rank for rank, plan in enumerate(plans) if plan != plans[0])
    pairs = zip_longest(plans[0][1], plans[other][1])
    first = next((f"{a} against {b}" for a, b in pairs if a != b), "their name")
    return (
        f"the ranks made different plans: rank 0 has {plans[0][0]!r} of {len(plans[0][1])} groups,"
        f" rank {other} has {plans[other][0]!r} of {len(plans[other][1])}; the first that differs"
        f" is {first}. A planner must decide from its arguments alone: no set's order, no chance."
    )
