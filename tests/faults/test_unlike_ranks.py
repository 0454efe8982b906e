"""One rank is not like the others: an error on all that says how, before any gradient moves."""

from __future__ import annotations

from dataclasses import fields, replace
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_gradsched
from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core import forward_overlap
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.runtime import collectives
from lightning_gradsched.runtime.consensus import LOCAL_SETTINGS, settings_to_agree
from tests import measured
from tests.ranks import run_ranks


def one_group_each(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    return GroupPlan("one_group_each", tuple((param.name,) for param in profile.params))


class FromChance:
    """A planner that decides by more than its arguments."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __call__(self, profile: BackwardProfile, cost: CostModel) -> GroupPlan:
        names = [param.name for param in profile.params]
        groups = [names] if self._rank == 1 else [names[:1], names[1:]]
        return GroupPlan("from_chance", tuple(map(tuple, groups)))


def build(kind: str, rank: int) -> tuple[nn.Module, GradSchedConfig]:
    """Two layers; rank 1's net or configuration differs as ``kind`` says."""
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    config = GradSchedConfig(planner="fixed_size", stall_timeout_s=20.0)
    if kind == "plan":
        config = replace(config, planner=FromChance(rank))
    if kind == "schedule":  # as where a rank's arithmetic differs
        forward_overlap.SURELY_HIDDEN_SHARE = [0.0, inf][rank]
        config = replace(config, planner=one_group_each, overlap_forward=True)
    if kind == "buffer":
        net[1].register_buffer("offset", torch.zeros(2 + rank))
    if kind == "frozen layer":
        net.append(nn.Linear(2, 2, bias=rank == 0).requires_grad_(False))
    if rank == 0:
        return net, config
    if kind == "shape":
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8))
    elif kind == "count":
        net = nn.Sequential(*net, nn.Linear(4, 4))
    elif kind == "dtype":
        net[1].to(torch.bfloat16)
    elif kind == "strides":
        net[0].weight.data = net[0].weight.detach().t()
    elif kind == "order":
        net = nn.ModuleDict({"1": net[1], "0": net[0]})
    elif kind == "requires_grad":
        net[0].weight.requires_grad_(False)
    elif kind == "planner":
        config = replace(config, planner="single")
    elif kind == "planner function":
        config = replace(config, planner=one_group_each)
    elif kind == "group_nbytes":
        config = replace(config, group_nbytes=100)
    elif kind == "version":
        lightning_gradsched.__version__ = "0.0.1"
    return net, config


UNLIKE = {
    "frozen layer": "frozen parameter or buffer 1 is '2.bias' of shape (2,), float32, strides (1,)"
    " on rank 0 and missing (it has 1) on rank 1",
    "buffer": "frozen parameter or buffer 0 is '1.offset' of shape (2,), float32, strides (1,) on"
    " rank 0 and '1.offset' of shape (3,)",
    "shape": "parameter 2 is '1.weight' of shape (4, 4), float32, strides (4, 1) on rank 0 and"
    " '1.weight' of shape (8, 4)",
    "count": "parameter 4 is missing (it has 4) on rank 0 and '2.weight'",
    "dtype": "parameter 2 is '1.weight' of shape (4, 4), float32, strides (4, 1) on rank 0 and"
    " '1.weight' of shape (4, 4), bfloat16",
    "strides": "strides (4, 1) on rank 0 and '0.weight' of shape (4, 4), float32, strides (1, 4)",
    "order": "parameter 0 is '0.weight' of shape (4, 4), float32, strides (4, 1) on rank 0 and"
    " '1.weight'",
    "requires_grad": "parameter 0 is '0.weight' of shape (4, 4), float32, strides (4, 1) on rank 0"
    " and '0.bias'",
    "planner": "planner is 'fixed_size' on rank 0 and 'single' on rank 1",
    "planner function": "planner is 'fixed_size' on rank 0 and 'one_group_each' on rank 1",
    "group_nbytes": "group_nbytes is 26214400 on rank 0 and 100 on rank 1",
    "version": f"lightning_gradsched is {lightning_gradsched.__version__!r} on rank 0 and '0.0.1'",
}


def count_of_reductions(rank: int, kind: str) -> tuple[str, int]:
    """What making the engine, or a step with it, raises; and how many groups were sent."""
    n_sent = 0
    send = collectives.Collectives.all_reduce

    def counted(self: Any, flat: Tensor) -> Any:
        nonlocal n_sent
        n_sent += flat.numel() < 100  # longer ones are those that calibrate
        return send(self, flat)

    collectives.Collectives.all_reduce = counted
    net, config = build(kind, rank)
    try:
        GradientScheduler(net, config)
        for _ in range(9):  # a planner function plans after seven steps
            n_sent = 0
            net(torch.ones(1, 4)).sum().backward()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}", n_sent
    return "", n_sent


@pytest.mark.parametrize("kind", UNLIKE)
def test_an_unlike_rank_is_named_on_all(kind: str) -> None:
    for message, n_sent in run_ranks(2, count_of_reductions, kind):
        measured.record(message)
        assert message.startswith("ConsensusError: the ranks h")
        assert UNLIKE[kind] in message
        assert n_sent == 0


def test_another_plan_is_named_on_all_before_it_is_used() -> None:
    for message, n_sent in run_ranks(2, count_of_reductions, "plan"):
        assert message.startswith("ConsensusError: the ranks made different plans")
        assert "rank 0 has 'from_chance' of 2 groups, rank 1 has 'from_chance' of 1" in message
        assert n_sent == 0


def test_another_schedule_of_one_plan_is_named_on_all_before_it_is_used() -> None:
    for message, n_sent in run_ranks(2, count_of_reductions, "schedule"):
        assert message.startswith("ConsensusError: the ranks made different plans")
        assert "the first that differs is the schedule" in message
        assert n_sent == 0


def test_every_setting_is_agreed_on_but_those_that_a_rank_has_for_itself() -> None:
    names = {field.name for field in fields(GradSchedConfig)}
    assert names > LOCAL_SETTINGS
    assert settings_to_agree(GradSchedConfig()).keys() == names - LOCAL_SETTINGS
