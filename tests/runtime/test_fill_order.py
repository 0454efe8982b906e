"""``schedule="auto"``: what it looks at, and what comes of it on real ranks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from lightning_gradsched import GradientScheduler
from lightning_gradsched.core.schedule import FillOrder, Verdict, judge
from lightning_gradsched.runtime.fill_order import WATCHED_STEPS
from tests.ranks import run_ranks
from tests.runtime.test_readiness import Routed, config, n_threads, run_steps


def test_half_of_the_steps_must_stall_to_change_the_schedule() -> None:
    calm, apart = FillOrder(stalled=False, alike=True), FillOrder(stalled=True, alike=False)
    together = FillOrder(stalled=True, alike=True)
    assert judge([calm] * 3 + [apart] * 2) is Verdict.KEEP
    assert judge([calm] * 2 + [apart] * 2) is Verdict.NEGOTIATE
    assert judge([calm] * 2 + [apart] + [together]) is Verdict.REPLAN
    assert judge([together] * 2 + [apart] * 2) is Verdict.NEGOTIATE
    # Another order that holds nobody up, as where a rank lacks a branch, is no stall.
    assert judge([FillOrder(stalled=False, alike=False)] * 4) is Verdict.KEEP


def automatic(rank: int, routes: list[tuple[str, ...]]) -> dict[str, Any]:
    torch.manual_seed(0)
    net = Routed()
    scheduler = GradientScheduler(net, config("auto"))
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lightning_gradsched").addHandler(handler)
    seen: dict[str, Any] = {"in_force": [], "plans": 0, "equal": []}
    plans = set()
    for route in routes:
        seen["in_force"].append(scheduler.schedule_in_force)
        seen["equal"] += run_steps(rank, net, [route])
        plans.add(scheduler.plan)
    seen["n_plans"], seen["n_threads"], seen["log"] = len(plans), n_threads(), records
    scheduler.detach()
    return seen


@pytest.mark.parametrize(
    ("routes", "in_force", "n_plans"),
    [
        ([("abcd", "abcd")], "static", 1),
        ([("abcd", "dcba")], "negotiated", 1),
        # The first step's order is no other step's: planned anew, and then there is no stall.
        ([("abcd", "abcd"), *[("dcba", "dcba")] * 99], "static", 2),
        # A rare detour is no reason to change.
        ([("abcd", "abcd"), ("abcd", "abcd"), ("abcd", "dcba")], "static", 1),
        ([("abcd", "abc"), ("abcd", "abd")], "static", 1),
    ],
)
def test_auto_negotiates_where_ranks_stall_on_each_others_order(
    routes: list[tuple[str, ...]], in_force: str, n_plans: int
) -> None:
    n_steps = 2 * WATCHED_STEPS + 2
    first, second = run_ranks(2, automatic, (routes * n_steps)[:n_steps])
    assert first["in_force"] == second["in_force"]
    assert first["in_force"][:WATCHED_STEPS] == ["static"] * WATCHED_STEPS
    assert first["in_force"][-1] == in_force
    for seen in (first, second):
        assert all(seen["equal"])
        assert seen["n_plans"] == n_plans
        assert seen["n_threads"] == int(in_force == "negotiated")
    assert len(first["log"]) == int(in_force == "negotiated")
    assert second["log"] == []
