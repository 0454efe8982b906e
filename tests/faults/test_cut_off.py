"""An exception or Ctrl-C in forward, in backward or in its wait; and the steps after it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig, GradSchedStrategy
from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.fill_order import WATCHED_STEPS
from tests.modes import MODES, attach
from tests.parity.reference import average_gradients
from tests.ranks import errors_of_ranks, names_silent, run_ranks, tell, until_told
from tests.strategy import modules
from tests.strategy.test_fit import trainer

# Gradients are those of no mode, whoever looks at them first.
LEFT_OPEN = ["", "overlap_forward", "scatter_gradients"]


class Net(nn.Module):
    """Three layers; ``trouble`` may raise in the forward or the backward of any."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.trouble = ""

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if self.trouble == f"forward {i}":
                raise KeyboardInterrupt
            if self.trouble == f"backward {i}":
                x.register_hook(_interrupt)
        return x


def _interrupt(_grad: Tensor) -> None:
    raise KeyboardInterrupt


def steps_around(rank: int, trouble: tuple[str, str], accumulates: bool) -> tuple[bool, list[str]]:
    """Step 1 is cut off on each rank where ``trouble`` says; whether all others are right."""
    torch.manual_seed(0)
    net = Net()
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(planner="per_tensor"))
    right, caught = True, []
    for step in range(4):
        x = torch.full((2, 4), 0.1 * (rank + 1 + step))
        if step != 1 or not accumulates:
            net.zero_grad()
        net.trouble = trouble[rank] if step == 1 else ""
        try:
            net(x).square().sum().backward()
        except KeyboardInterrupt:
            caught.append(net.trouble)
            net.zero_grad()
            continue
        plain.zero_grad()
        plain(x).square().sum().backward()
        average_gradients(plain)
        ours, theirs = net.parameters(), plain.parameters()
        right &= all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))
    scheduler.detach()
    return right, caught


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize(
    "trouble",
    [
        ("forward 1", "forward 2"),
        ("backward 0", "backward 0"),
        ("backward 1", "backward 0"),  # each wherever it was
        ("backward 0", "backward 1"),
    ],
)
def test_all_ranks_cut_off_alike_go_on(trouble: tuple[str, str], accumulates: bool) -> None:
    for rank, result in enumerate(run_ranks(2, steps_around, trouble, accumulates)):
        assert result == (True, [trouble[rank]])


def engine(net: nn.Module, mode: str = "", **config: Any) -> GradientScheduler:
    config = {"planner": "per_tensor", **config, **MODES.get(mode, {})}
    return GradientScheduler(net, GradSchedConfig(**config))


def in_each_mode(rank: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    return [function(rank, *args, mode) for mode in LEFT_OPEN]


def collectives_after(rank: int, which: str, mode: str) -> bool:
    """Ranks are cut off at unlike groups; then comes a collective of the engine's own."""
    torch.manual_seed(0)
    net = Net()
    if which == "buffers":
        net.register_buffer("offset", torch.zeros(1))
    plain = deepcopy(net)
    scheduler = engine(net, mode, stall_timeout_s=20.0)
    for step in range(3):
        net.zero_grad()
        net.trouble = f"backward {rank}" if step == 1 else ""
        try:
            net(torch.full((2, 4), 0.1 * (rank + 1 + step))).square().sum().backward()
        except KeyboardInterrupt:
            if which == "report":
                with suppress(GradSchedError):  # no step is measured yet; the ranks agree on that
                    scheduler.report(across_ranks=True)
    plain(torch.full((2, 4), 0.1 * (rank + 3))).square().sum().backward()
    average_gradients(plain)
    pairs = zip(net.parameters(), plain.parameters(), strict=True)
    is_right = all(torch.equal(a.grad, b.grad) for a, b in pairs)
    scheduler.detach()
    return is_right


@pytest.mark.parametrize("which", ["buffers", "report"])
def test_no_collective_overtakes_what_a_backward_that_raised_has_left(which: str) -> None:
    assert run_ranks(2, in_each_mode, collectives_after, which) == [[True] * len(LEFT_OPEN)] * 2


def one_cut_off(rank: int, mode: str) -> list[bool]:
    """Rank 1 catches an error of its backward and goes on; which parameters hold NaN then."""
    torch.manual_seed(0)
    net = Net()
    scheduler = engine(net, mode)
    nans = []
    for step in range(3):
        net.zero_grad()
        net.trouble = "backward 1" if (step, rank) == (1, 1) else ""
        try:
            net(torch.full((2, 4), 0.1 * (rank + 1))).square().sum().backward()
        except KeyboardInterrupt:
            continue
        nans.append(any(p.grad.isnan().any() for p in net.parameters()))
    scheduler.detach()
    return nans


def test_what_one_rank_left_out_is_nan_on_the_others_and_not_a_mean_of_the_rest() -> None:
    whole, cut_off = run_ranks(2, in_each_mode, one_cut_off)
    assert whole == [[False, True, False]] * len(LEFT_OPEN)
    assert cut_off == [[False, False]] * len(LEFT_OPEN)


def made_anew_after(rank: int, mode: str) -> bool:
    """The engine is detached with groups under way, unlike ones by rank, and made anew."""
    torch.manual_seed(0)
    net = Net()
    plain = deepcopy(net)
    right = True
    for step in range(4):
        scheduler = engine(net, mode, stall_timeout_s=20.0)
        x = torch.full((2, 4), 0.1 * (rank + 1 + step))
        for trouble in ("", f"backward {rank}"):
            net.zero_grad()
            net.trouble = trouble
            with suppress(KeyboardInterrupt):
                net(x).square().sum().backward()
                plain.zero_grad()
                plain(x).square().sum().backward()
                average_gradients(plain)
                pairs = zip(net.parameters(), plain.parameters(), strict=True)
                right &= all(torch.equal(a.grad, b.grad) for a, b in pairs)
        scheduler.detach()
    return right


def test_an_engine_may_be_made_anew_after_an_exception() -> None:
    assert run_ranks(2, in_each_mode, made_anew_after) == [[True] * len(LEFT_OPEN)] * 2


def cut_off_with_no_group_full(rank: int) -> list[str]:
    """Rank 1 raises before any group of its is full, so that it has offered none."""
    torch.manual_seed(0)
    net = Net()
    GradientScheduler(
        net, GradSchedConfig(planner="single", schedule="negotiated", stall_timeout_s=20.0)
    )
    ends = []
    for step in range(3):
        net.zero_grad()
        net.trouble = "backward 1" if (step, rank) == (1, 1) else ""
        try:
            net(torch.full((2, 4), 0.1 * (rank + 1))).square().sum().backward()
            ends.append("reduced")
        except (KeyboardInterrupt, ReductionError) as error:
            ends.append(str(error)[:38])
    return ends


def test_where_ranks_negotiate_all_learn_that_one_was_cut_off() -> None:
    whole, cut_off = run_ranks(2, cut_off_with_no_group_full)
    assert whole == ["reduced", "another rank gave up this backward, so", "reduced"]
    assert cut_off == ["reduced", "", "reduced"]


def agreements_after(rank: int) -> list[str]:
    """Rank 1 alone is cut off once; later the ranks judge their last 20 backwards together."""
    torch.manual_seed(0)
    net = Net()
    config = GradSchedConfig(
        planner="per_tensor", schedule="auto", record_every_n_steps=2, stall_timeout_s=20.0
    )
    scheduler = GradientScheduler(net, config)
    for step in range(WATCHED_STEPS + 4):
        net.zero_grad()
        net.trouble = "backward 1" if (step, rank) == (2, 1) else ""
        with suppress(KeyboardInterrupt):
            net(torch.full((2, 4), 0.1 * (rank + 1))).square().sum().backward()
    return [row.label for row in scheduler.report(across_ranks=True).groups]


def test_what_one_rank_left_out_counts_as_a_step_on_all() -> None:
    first, second = run_ranks(2, agreements_after)
    assert first == second


def interrupted_in_the_wait(rank: int, mode: str) -> tuple[bool, bool]:
    """Rank 1 comes late; rank 0 gets Ctrl-C while it waits, and so does rank 1 in forward."""
    torch.manual_seed(0)
    net = Net()
    plain = deepcopy(net)
    engine(net, mode)
    caught = False
    # What a shell runs in the background begins with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    for step in range(3):
        x = torch.full((2, 4), 0.1 * (rank + 1 + step))
        net.zero_grad()
        if (step, rank) == (1, 0):
            # From within backward: on a busy machine the interrupt would else come before it.
            hook = net.layers[0].weight.register_hook(lambda grad: ctrl_c.start() or grad)
        if (step, rank) == (1, 1):
            until_told("interrupted")
            net.layers[0].weight.register_hook(lambda grad: time.sleep(0.1) or grad)
        try:
            net(x).square().sum().backward()
        except KeyboardInterrupt:
            caught = True
            tell("interrupted")
        if (step, rank) == (1, 0):
            hook.remove()
    plain(x).square().sum().backward()
    average_gradients(plain)
    pairs = zip(net.parameters(), plain.parameters(), strict=True)
    return caught, all(torch.equal(a.grad, b.grad) for a, b in pairs)


@pytest.mark.parametrize(
    "mode", [LEFT_OPEN[0], *(pytest.param(mode, marks=pytest.mark.slow) for mode in LEFT_OPEN[1:])]
)
def test_ctrl_c_ends_the_wait_for_a_late_rank(mode: str) -> None:
    first, second = run_ranks(2, interrupted_in_the_wait, mode)
    assert first == (True, True), "and the next step is right: nothing of the old one is in flight"
    assert second == (False, True)


def interrupted_in_the_forward(rank: int, mode: str) -> tuple[bool, bool]:
    """Rank 1 is late with what the next forward waits for; rank 0 gets Ctrl-C there."""
    torch.manual_seed(0)
    net = Net()
    plain = deepcopy(net)
    batches = [torch.full((2, 4), 0.1 * (rank + 1 + step)) for step in range(4)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = engine(net, mode)
    attach(scheduler, optimizer, MODES[mode])
    be_late: dict[str, Any] = {
        "overlap_forward": net.layers[0].weight.register_hook,
        "shard_optimizer": optimizer.register_step_pre_hook,
    }
    caught = False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for step, x in enumerate(batches):
        if (step, rank) == (1, 1):
            late = be_late[mode](lambda *_: until_told("interrupted"))
        if (step, rank) == (2, 0):
            assert scheduler.n_open > 0
            try:
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                net(x)
            except KeyboardInterrupt:
                caught = True
                tell("interrupted")
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        if (step, rank) == (1, 1):
            late.remove()
    scheduler.detach()
    train_plainly(plain, batches)
    pairs = zip(net.parameters(), plain.parameters(), strict=True)
    return caught, all(torch.equal(a, b) for a, b in pairs)


def train_plainly(net: nn.Module, batches: list[Tensor]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        net(x).square().sum().backward()
        average_gradients(net)
        optimizer.step()


@pytest.mark.parametrize("mode", ["overlap_forward", "shard_optimizer"])
def test_ctrl_c_ends_the_wait_in_the_next_forward_which_may_then_be_run_again(mode: str) -> None:
    assert run_ranks(2, interrupted_in_the_forward, mode) == [(True, True), (False, True)]


class OneRankRaises(modules.Regression):
    def on_train_batch_start(self, _batch: Any, batch_idx: int) -> None:
        if (self.global_rank, batch_idx) == (1, 2):
            raise ZeroDivisionError("no such luck")


def fit(rank: int, mode: str) -> None:
    strategy = GradSchedStrategy(stall_timeout_s=10.0, **MODES.get(mode, {}))
    trainer(strategy).fit(OneRankRaises())


@pytest.mark.parametrize(
    "mode", ["", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES)]
)
def test_in_lightning_the_error_of_one_rank_is_told_to_the_others(mode: str) -> None:
    first, second = errors_of_ranks(2, fit, mode)
    assert second == "ZeroDivisionError: no such luck"
    assert first.startswith("ReductionError: rank 0 waited")
    assert "Rank 1 has ended: its engine was detached after ZeroDivisionError: no such" in first


def one_raises(rank: int) -> None:
    net = Net()
    GradientScheduler(net, GradSchedConfig(stall_timeout_s=15.0))
    for step in range(3):
        if (rank, step) == (1, 2):
            raise ZeroDivisionError("no such luck")
        net(torch.ones(1, 4)).sum().backward()


def test_an_error_on_one_rank_is_one_on_the_others() -> None:
    first, second, third = errors_of_ranks(3, one_raises)
    assert second == "ZeroDivisionError: no such luck"
    for message in (first, third):
        assert message.startswith("ReductionError: rank ")
        assert "group 0 (layers.2.bias, layers.2.weight, layers.1.bias and 3 more)" in message
        assert "Rank 1 " in message or names_silent(1, message)


def one_cut_off_before_a_common_decision(rank: int) -> tuple[str, int]:
    """The ranks judge their orders together after 20 steps, of which one was cut off."""
    net = Net()
    config = GradSchedConfig(planner="per_tensor", schedule="auto", stall_timeout_s=20)
    scheduler = GradientScheduler(net, config)
    for step in range(24):
        net.zero_grad()
        net.trouble = "backward 1" if (rank, step) == (1, 3) else ""
        with suppress(KeyboardInterrupt):
            net(torch.ones(2, 4)).square().sum().backward()
    result = scheduler.schedule_in_force, scheduler._reducer._n_reduced
    scheduler.detach()
    return result


def test_ranks_of_which_one_was_cut_off_count_the_same_steps() -> None:
    first, second = run_ranks(2, one_cut_off_before_a_common_decision)
    assert first == second
