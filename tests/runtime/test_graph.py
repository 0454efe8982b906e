"""The walk's order against the order in which autograd really ran the hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradsched.runtime.graph import ready_order
from tests.parity.nets import NETS, WIDTH, SharedReentrant


def predicted_and_actual(net: nn.Module) -> tuple[list[str], list[str]]:
    names = {id(p): name for name, p in net.named_parameters()}
    actual: list[str] = []
    for param in net.parameters():
        param.register_post_accumulate_grad_hook(lambda p: actual.append(names[id(p)]))
    loss = torch.cos(net(torch.randn(3, WIDTH))).mean()
    predicted = [
        names[id(leaf)] for leaf in ready_order([loss.grad_fn]).leaves if id(leaf) in names
    ]
    loss.backward()
    return predicted, actual


@pytest.mark.parametrize("name", sorted(NETS.keys() - {"checkpointed_reentrant"}))
def test_order_is_the_engines_own(name: str) -> None:
    predicted, actual = predicted_and_actual(NETS[name]())
    assert predicted == actual


def test_reentrant_checkpoints_hide_their_parameters() -> None:
    net = NETS["checkpointed_reentrant"]()
    assert ready_order([net(torch.randn(3, WIDTH)).grad_fn]).hides
    predicted, actual = predicted_and_actual(net)
    assert predicted == ["tail.bias", "tail.weight", "head.bias", "head.weight"]
    assert set(predicted) < set(actual)


def test_unused_parameters_are_not_met() -> None:
    net = nn.ModuleDict({"used": nn.Linear(WIDTH, 1), "unused": nn.Linear(WIDTH, 1)})
    walk = ready_order([net["used"](torch.ones(1, WIDTH)).sum().grad_fn])
    assert not walk.hides
    assert {id(p) for p in net["used"].parameters()} == {id(leaf) for leaf in walk.leaves}


def test_a_leaf_shared_by_segments_comes_once_in_the_outer_graph() -> None:
    predicted, actual = predicted_and_actual(SharedReentrant())
    assert sorted(predicted) == ["head.bias", "head.weight"]
    assert actual.count("block.0.weight") == 2


def test_a_deep_chain_does_not_recurse() -> None:
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(5000):
        y = y + 1
    assert [leaf is x for leaf in ready_order([y.grad_fn]).leaves] == [True]
