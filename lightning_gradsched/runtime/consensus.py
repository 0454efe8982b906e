"""What the ranks agree on before the first gradient moves. Each function is collective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.reasons import Fastest
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.errors import ConsensusError, PlanError
from lightning_gradsched.naming import some_of
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
    explain = partial(_explain_tensors, kind="trainable parameter")
    _check_same(collectives, _table(params), "the trainable parameters", explain)


def check_state(collectives: Collectives, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ConsensusError`` on every rank unless all hold the same tensors that do not train.

    They are copied from one rank to all others at the start.
    """
    explain = partial(_explain_tensors, kind="frozen parameter or buffer")
    _check_same(collectives, _table(tensors), "frozen parameters and buffers", explain)


def check_unfrozen(collectives: Collectives, params: Mapping[str, Tensor]) -> None:
    """Raise ``ConsensusError`` on every rank unless all begin to train the same parameters now."""
    _check_same(collectives, _table(params), "the unfrozen parameters", _explain_unfrozen)


def raise_out_of_step(collectives: Collectives, n_reduced: int) -> None:
    """Raise ``ConsensusError``: not all ranks plan anew after the ``n_reduced``-th backward.

    All ranks must have found so.
    """
    counts = collectives.gather(n_reduced, "the number of backwards of each rank")
    told = ", ".join(f"{n} on rank {r}" for r, n in zip(collectives.ranks, counts, strict=True))
    raise ConsensusError(
        "expected all ranks to plan anew after the same backward, got one after which only some do:"
        f" the ranks are out of step. They have reduced {told} backwards. A rank that caught an"
        " exception in backward must not go on alone: let the job end, or catch it on all ranks."
    )


def check_batches(collectives: Collectives, n_batches: float) -> None:
    """Raise ``ConsensusError`` on every rank unless all will run as many training batches."""
    _check_same(collectives, n_batches, "the number of batches", _explain_batches)


def check_same_plan(collectives: Collectives, plan: GroupPlan, schedule: ReductionSchedule) -> None:
    """Raise ``ConsensusError`` on every rank unless all made the same plan and schedule."""
    value = [plan.planner, plan.groups, plan.launches, plan.owners, str(schedule)]
    _check_same(collectives, value, "the plan", _explain_plan)


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
    index = next(i for i, text in enumerate(faults) if text)
    raise PlanError(f"{what} failed on rank {collectives.ranks[index]}: {faults[index]}")


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
    return [[_fastest(-next(least), collectives.ranks) for _ in row] for row in seconds]


def _fastest(coded: int, ranks: Sequence[int]) -> Fastest:
    ns, index = divmod(coded, len(ranks))
    return Fastest(1e-9 * ns, ranks[index])


class Unlike(NamedTuple):
    """What the group's first rank has, and what the first one that differs from it has."""

    first: int
    has: Any
    other: int
    other_has: Any
    all_have: list[Any]  # by rank of the group


def _check_same(
    collectives: Collectives, value: Any, subject: str, explain: Callable[[Unlike], str]
) -> None:
    """Compare digests by one small all-reduce; gather the values only to explain a difference."""
    canonical = json.dumps(value)
    digest = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:7], "big")
    what = f"the agreement on {subject}"
    low, high = collectives.min_and_max(digest, what)
    if low != high:
        values = [json.loads(text) for text in collectives.gather(canonical, what)]
        i = next(i for i, other in enumerate(values) if other != values[0])
        ranks = collectives.ranks
        raise ConsensusError(explain(Unlike(ranks[0], values[0], ranks[i], values[i], values)))


def _table(tensors: Mapping[str, Tensor]) -> list[list[Any]]:
    return [
        [name, list(t.shape), str(t.dtype).removeprefix("torch."), list(t.stride())]
        for name, t in tensors.items()
    ]


def _explain_recorded(ranks: Unlike) -> str:
    return (
        f"expected all ranks to have recorded the same steps, got steps {ranks.has[0]} since the"
        f" plan was made on rank {ranks.first} and {ranks.other_has[0]} on rank {ranks.other}:"
        " give all ranks the same record_every_n_steps"
    )


def _explain_settings(ranks: Unlike) -> str:
    unlike = [
        f"{name} is {value!r} on rank {ranks.first} and {ranks.other_has.get(name)!r} on rank"
        f" {ranks.other}"
        for name, value in ranks.has.items()
        if value != ranks.other_has.get(name)
    ]
    return f"the ranks have different settings: {'; '.join(unlike)}. Give all ranks the same."


def _explain_batches(ranks: Unlike) -> str:
    least = min(ranks.all_have)
    return (
        f"expected all ranks to have as many training batches, got {ranks.all_have} by rank: those"
        " with more would wait for the others. Let Lightning's DistributedSampler cut the data"
        f" evenly (use_distributed_sampler=True), set Trainer(limit_train_batches={least:g}), or"
        " train on all of them by GradSchedStrategy(uneven_batches='active')."
    )


def _explain_tensors(ranks: Unlike, kind: str) -> str:
    index = next(
        (i for i, (a, b) in enumerate(zip(ranks.has, ranks.other_has, strict=False)) if a != b),
        min(len(ranks.has), len(ranks.other_has)),
    )
    return (
        f"the ranks hold different models: {kind} {index} is"
        f" {_describe(ranks.has, index)} on rank {ranks.first} and"
        f" {_describe(ranks.other_has, index)} on rank {ranks.other}."
        " Build the same model on every rank: same configuration, same code, same frozen layers."
    )


def _explain_unfrozen(ranks: Unlike) -> str:
    ours, theirs = ([row[0] for row in table] for table in (ranks.has, ranks.other_has))
    if ours == theirs:
        return _explain_tensors(ranks, kind="unfrozen parameter")
    return (
        f"expected all ranks to unfreeze the same parameters before the same backward, got"
        f" {_names(ours)} on rank {ranks.first} and {_names(theirs)} on rank {ranks.other}. None of"
        " their gradients has been sent. Set requires_grad alike on every rank: by step or epoch,"
        " not by what a rank has measured on its own."
    )


def _names(names: Sequence[str]) -> str:
    return some_of([repr(name) for name in names]) or "none"


def _describe(table: list[list[Any]], index: int) -> str:
    if index >= len(table):
        return f"missing (it has {len(table)})"
    name, shape, dtype, stride = table[index]
    return f"{name!r} of shape {tuple(shape)}, {dtype}, strides {tuple(stride)}"


def _explain_plan(ranks: Unlike) -> str:
    ours, groups, *others = ranks.has
    theirs, other_groups, *other_others = ranks.other_has
    what = ("the order of their launches", "the owners", "the schedule")
    further = zip(what, others, other_others, strict=True)
    rest = (name for name, a, b in further if a != b)
    pairs = zip_longest(groups, other_groups)
    unlike = (f"{a} against {b}" for a, b in pairs if a != b)
    first = next(chain(unlike, rest), "their name")
    return (
        f"the ranks made different plans: rank {ranks.first} has {ours!r} of {len(groups)} groups,"
        f" rank {ranks.other} has {theirs!r} of {len(other_groups)}; the first that differs"
        f" is {first}. A planner must decide from its arguments alone: no set's order, no chance."
    )
