"""How gradients are summed is chosen alike on all ranks, of emulated nodes, and is right."""

from __future__ import annotations

import json
import logging
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.profile import (
    ALL_REDUCE,
    HIERARCHICAL_ALL_REDUCE,
    NetworkProfile,
    Sample,
)
from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime import calibration
from lightning_gradsched.runtime.reduction import faster_way
from tests.parity.nets import NETS, WIDTH
from tests.parity.reference import average_gradients
from tests.ranks import RankError, errors_of_ranks, run_ranks
from tests.runtime.threads import left_threads

MIB = 2**20


def on_nodes(rank: int, sizes: list[int]) -> None:
    """Have this process say that it runs on nodes of so many ranks, as torchrun would."""
    node = [n for n, size in enumerate(sizes) for _ in range(size)][rank]
    os.environ.update(GROUP_RANK=str(node), LOCAL_WORLD_SIZE=str(sizes[node]))


def trained(rank: int, sizes: list[int], name: str, planner: str) -> tuple[Any, ...]:
    """The worst relative error of any gradient in five steps, its bits, and who reduced."""
    on_nodes(rank, sizes)
    torch.manual_seed(0)
    net = NETS[name]()
    plain = deepcopy(net)
    config = GradSchedConfig(
        planner=planner, group_nbytes=2000, record_every_n_steps=2, reduction="hierarchical"
    )
    scheduler = GradientScheduler(net, config)
    generator = torch.Generator().manual_seed(rank)
    worst, gradients = 0.0, []
    for _ in range(8):
        x = torch.randn(3, WIDTH, generator=generator)
        for each in (net, plain):
            each.zero_grad()
            torch.cos(each(x)).mean().backward()
        average_gradients(plain)
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            worst = max(worst, relative_error(ours.grad, theirs.grad))
            gradients.append(ours.grad.numpy().tobytes())
    n_groups = len(scheduler.plan.groups)
    comm_s = scheduler.report().comm_s
    scheduler.detach()
    assert left_threads("node") == []
    return worst, gradients, scheduler.reduction, n_groups, comm_s


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    scale = float(theirs.norm())
    return float((ours - theirs).norm()) / scale if scale else float(ours.norm())


@pytest.mark.parametrize(
    ("sizes", "name", "planner"),
    [
        ([2, 2], "residual", "fixed_size"),
        ([2, 2], "checkpointed_reentrant", "per_tensor"),
        ([1, 2], "dense", "ddp"),
    ],
)
def test_gradients_are_the_mean_and_the_same_bits_on_all_ranks(sizes, name, planner):
    results = run_ranks(sum(sizes), trained, sizes, name, planner)
    for worst, gradients, reduction, n_groups, comm_s in results:
        assert worst < 1e-6
        assert gradients == results[0][1]
        assert reduction == "hierarchical"
        assert n_groups > 1 or planner == "ddp"
        assert comm_s > 0


def chosen(rank: int, sizes: list[int], reduction: str, planner: str) -> str:
    on_nodes(rank, sizes)
    scheduler = GradientScheduler(
        nn.Linear(WIDTH, WIDTH), GradSchedConfig(planner=planner, reduction=reduction)
    )
    scheduler.detach()
    return scheduler.reduction


@pytest.mark.parametrize(
    ("sizes", "reduction"),
    [([2], "hierarchical"), ([1, 1], "hierarchical"), ([2, 1], "auto"), ([2, 1], "flat")],
    ids=["one node", "one rank a node", "nothing measured", "as set"],
)
def test_stays_flat(sizes, reduction):
    assert set(run_ranks(sum(sizes), chosen, sizes, reduction, "ddp")) == {"flat"}


def unlike(rank: int) -> str:
    return chosen(rank, [2, 1], ("flat", "flat", "hierarchical")[rank], "ddp")


def test_ranks_that_are_set_unlike_are_told():
    for message in errors_of_ranks(3, unlike):
        assert "reduction is 'flat' on rank 0 and 'hierarchical' on rank 2" in message


def on_another_device(rank: int, reduction: str) -> str:
    on_nodes(rank, [2, 1])
    net = nn.Linear(WIDTH, WIDTH, device="meta" if rank == 1 else "cpu")
    from lightning_gradsched.runtime.collectives import Collectives
    from lightning_gradsched.runtime.reduction import Reduction

    collectives = Collectives(None, torch.device("cpu"), 20.0)
    config = GradSchedConfig(planner="ddp", reduction=reduction)
    return Reduction(net, config, collectives, measures=False).name


def test_a_hierarchy_for_parameters_elsewhere_is_refused_on_all_ranks():
    for message in errors_of_ranks(3, on_another_device, "hierarchical"):
        assert 'GradSchedError: reduction="hierarchical" needs the gloo backend' in message


def calibrated(rank: int, folder: str) -> tuple[str, list[str], list[str]]:
    """What was chosen, twice; the collectives in the network of the first, and rank 0's log."""
    on_nodes(rank, [2, 2])
    calibration.LADDER_NBYTES = (2**10, 2**14, 2**18)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("lightning_gradsched.runtime.reduction")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    networks, names = [], []
    for reduction in ("flat", "auto", "auto"):
        config = GradSchedConfig(
            planner="optimal", reduction=reduction, calibration_dir=folder, group_nbytes=1000
        )
        scheduler = GradientScheduler(nn.Linear(256, 256), config)
        assert scheduler.network is not None
        networks.append(scheduler.network.to_json())
        names.append(scheduler.reduction)
        scheduler.detach()
    assert networks[1] == networks[2], "the second time it is read"
    assert names[0] == "flat"
    assert names[1] == names[2]
    collectives = [row["collective"] for row in json.loads(networks[1])["samples"]]
    return names[1], [*dict.fromkeys(collectives)], lines


def test_auto_measures_both_ways_once_and_decides_alike(tmp_path: Path):
    results = run_ranks(4, calibrated, str(tmp_path))
    name, collectives, log = results[0]
    assert {other[0] for other in results} == {name}
    assert collectives == [ALL_REDUCE, HIERARCHICAL_ALL_REDUCE]
    assert [line.split(":")[0] for line in log] == [f"gradients are reduced {name}"] * 2
    assert "ms through the nodes" in log[0]
    assert [other[2] for other in results[1:]] == [[]] * 3


class Alone:
    """The collectives of one rank."""

    def from_rank_0(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("hierarchical_ms", "numel", "name"),
    [
        # At 4 MiB it is faster, at 1 KiB slower.
        ((9.0, 12.0), 2 * MIB, "hierarchical"),
        ((9.0, 12.0), 256, "flat"),
        # Four hundredths are no gain.
        ((1.0, 38.4), MIB, "flat"),
    ],
)
def test_the_faster_way_for_a_typical_group_is_chosen(hierarchical_ms, numel, name):
    def samples(collective: str, small_ms: float, large_ms: float) -> list[Sample]:
        return [
            Sample(collective, 1024, 1e-3 * small_ms),
            Sample(collective, 4 * MIB, 1e-3 * large_ms),
        ]

    network = NetworkProfile(
        backend="gloo",
        world_size=4,
        n_nodes=2,
        ranks_per_node=2,
        samples=(
            *samples(ALL_REDUCE, 1.0, 40.0),
            *samples(HIERARCHICAL_ALL_REDUCE, *hierarchical_ms),
        ),
    )
    model = nn.Linear(numel, 1, bias=False, device="meta")
    assert faster_way(model, Alone(), network)[0] == name  # type: ignore[arg-type]


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"reduction: expected one of \('flat',.* got 'tree'"):
        GradSchedConfig(reduction="tree")


def one_dies(rank: int) -> None:
    """Rank 3 ends in its third step; the others' timeout is far away."""
    on_nodes(rank, [2, 2])
    net = nn.Linear(WIDTH, WIDTH)
    config = GradSchedConfig(planner="ddp", reduction="hierarchical", stall_timeout_s=300.0)
    scheduler = GradientScheduler(net, config)
    for _ in range(2):
        net(torch.ones(1, WIDTH)).sum().backward()
    loss = net(torch.ones(1, WIDTH)).sum()
    if rank == 3:
        os._exit(7)
    with pytest.raises(ReductionError, match=r"for group 0 .* gives up"):
        loss.backward()
    scheduler.detach()
    assert left_threads("node") == []


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_step_of_all_others():
    with pytest.raises(RankError) as error:
        run_ranks(4, one_dies, timeout_s=200.0)
    assert str(error.value) == "rank 3: died with exit code 7"
