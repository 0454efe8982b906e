"""Optimizers of which each rank updates a part: looks, states, layers that join, and breakdowns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.lazy import is_lazy
from tests.ranks import errors_of_ranks, run_ranks, tell, until_told
from tests.runtime.overlapping import LOOKS, WIDTH, Chain, adam, nets, one_step


def engine(net: torch.nn.Module, **config: Any) -> GradientScheduler:
    return GradientScheduler(
        net, GradSchedConfig(**{"planner": "per_tensor", "shard_optimizer": True, **config})
    )


def sharded(rank: int, **config: Any) -> tuple[Chain, Any, GradientScheduler, Chain]:
    """A net after a step of which weights are under way, and the net as it must be."""
    net, plain = nets()
    scheduler = engine(net, **config)
    optimizer = adam(net)
    scheduler.shard(optimizer)
    one_step(net, optimizer, rank)
    reference = GradientScheduler(plain, GradSchedConfig(planner="single"))
    one_step(plain, adam(plain), rank)
    reference.detach()
    return net, optimizer, scheduler, plain


def looks(rank: int) -> list[str]:
    wrong = []
    for name, look in LOOKS.items():
        net, _, scheduler, plain = sharded(rank)
        # Three layers alike: rank 0 owns the first and the last.
        assert is_lazy(net.stem.weight) is (rank == 1)
        assert is_lazy(net.middle.weight) is (rank == 0)
        net.stem, net.middle = (net.stem, net.middle) if rank else (net.middle, net.stem)
        plain.stem, plain.middle = (
            (plain.stem, plain.middle) if rank else (plain.middle, plain.stem)
        )
        if not torch.equal(look(net), look(plain)):
            wrong.append(name)
        scheduler.detach()
        assert not any(map(is_lazy, net.parameters()))
    return wrong


def test_whoever_looks_finds_what_there_would_be_without() -> None:
    assert run_ranks(2, looks) == [[], []]


def modules_wait_for_their_own(rank: int) -> None:
    net, optimizer, scheduler, plain = sharded(rank)
    n_open = scheduler.n_open
    assert n_open == (1, 2)[rank]
    optimizer.zero_grad()
    net.stem(torch.ones(WIDTH))
    assert scheduler.n_open == (1, 1)[rank]
    assert torch.equal(net.stem.weight, plain.stem.weight)
    scheduler.flush()
    assert scheduler.n_open == 0
    assert torch.equal(net.middle.weight, plain.middle.weight)


def test_each_module_waits_for_its_own() -> None:
    run_ranks(2, modules_wait_for_their_own)


def states(rank: int) -> list[str]:
    net, optimizer, scheduler, plain = sharded(rank)
    reference = GradientScheduler(plain)
    whole = adam(plain)
    one_step(net, optimizer, rank, 1)
    own = {p: v["exp_avg"].clone() for p, v in optimizer.state.items()}
    assert len(own) == (2, 1)[rank]
    with pytest.raises(GradSchedError) as error:
        optimizer.state_dict()
    optimizer.consolidate_state_dict()
    state = optimizer.state_dict()
    assert len(state["state"]) == (3, 1)[rank]
    # What is loaded is kept in part; a state of a whole run does, too.
    optimizer.load_state_dict(state)
    assert all(torch.equal(optimizer.state[p]["exp_avg"], v) for p, v in own.items())
    one_step(plain, whole, rank)
    optimizer.load_state_dict(whole.state_dict())
    assert len(optimizer.state) == len(own)
    reference.detach()
    scheduler.detach()
    assert not hasattr(optimizer, "consolidate_state_dict")
    return [str(error.value)]


def test_a_state_is_whole_after_it_was_consolidated_and_in_part_after_it_was_loaded() -> None:
    for rank, (message,) in enumerate(run_ranks(2, states)):
        assert f"rank {rank} has the state of its own part alone" in message
        assert "optimizer.consolidate_state_dict() on all ranks first" in message


def resumed(rank: int) -> bool:
    """From a sharded run's state on, without shards; and the other way around."""
    results = []
    for first, second in ((True, False), (False, True), (False, False)):
        net, _ = nets()
        state = None
        for is_sharded, steps in ((first, range(3)), (second, range(3, 6))):
            scheduler = engine(net, shard_optimizer=is_sharded)
            optimizer = adam(net)
            if is_sharded:
                scheduler.shard(optimizer)
            if state is not None:
                optimizer.load_state_dict(state)
            for step in steps:
                one_step(net, optimizer, rank, step)
            if is_sharded:
                optimizer.consolidate_state_dict()
            # As out of a checkpoint, which rank 0 writes.
            state = scheduler._collectives.from_rank_0(optimizer.state_dict())
            scheduler.detach()
        results.append([p.detach().clone() for p in net.parameters()])
    return all(
        torch.equal(p, q) for ours in results[:2] for p, q in zip(ours, results[2], strict=True)
    )


def test_a_run_goes_on_with_and_without_shards() -> None:
    assert run_ranks(2, resumed) == [True, True]


def unfrozen(rank: int) -> bool:
    """A layer joins the optimizer in a group of its own, and rates change."""
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        net.stem.requires_grad_(False)
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = torch.optim.SGD([*net.middle.parameters(), *net.head.parameters()], 0.1, 0.9)
        if is_ours:
            scheduler.shard(optimizer)
        for step in range(5):
            if step == 2:
                net.stem.requires_grad_(True)
                optimizer.add_param_group({"params": [*net.stem.parameters()], "lr": 0.01})
            one_step(net, optimizer, rank, step)
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_what_is_unfrozen_gets_an_owner() -> None:
    assert run_ranks(2, unfrozen) == [True, True]


def scaled_and_lagged(rank: int) -> list[bool]:
    alike = []
    for lag in (0, 1):
        results = []
        for shards in (True, False):
            net, _ = nets()
            scheduler = engine(net, shard_optimizer=shards, gradient_lag=lag)
            optimizer, scaler = adam(net), torch.amp.GradScaler("cpu", init_scale=1024.0)
            if shards:
                scheduler.shard(optimizer)
            for step in range(5):
                optimizer.zero_grad()
                inf = step == 2 and rank == 1 and not lag
                x = torch.full((3, WIDTH), torch.inf if inf else 1.0 + rank + step)
                scaler.scale(net(x).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
            scheduler.flush()
            results.append([p.detach().clone() for p in net.parameters()])
            scheduler.detach()
        alike.append(all(torch.equal(p, q) for p, q in zip(*results, strict=True)))
    return alike


def test_loss_scaling_and_lag() -> None:
    assert run_ranks(2, scaled_and_lagged) == [[True, True]] * 2


def refusals(rank: int) -> list[str]:
    net, _ = nets()
    messages = []
    scheduler = engine(net)
    with pytest.raises(GradSchedError) as error:
        scheduler.shard(torch.optim.LBFGS(net.parameters()))
    messages.append(str(error.value))
    scheduler.detach()
    with pytest.raises(GradSchedError) as error:
        GradientScheduler(net).shard(adam(net))
    return [*messages, str(error.value)]


def test_what_cannot_be_sharded_is_refused_by_name() -> None:
    whole, without = run_ranks(2, refusals)[0]
    assert "shard_optimizer: LBFGS is not known to update each parameter" in whole
    assert "shard(optimizer): expected shard_optimizer=True, got False" in without
    with pytest.raises(ValueError, match="shard_optimizer: expected overlap_forward=False"):
        GradSchedConfig(shard_optimizer=True, overlap_forward=True)


def failing(rank: int) -> str:
    net, optimizer, scheduler, _ = sharded(rank, stall_timeout_s=10.0)
    scheduler.flush()
    if rank == 1:  # it goes away between its backward and its step
        optimizer.zero_grad()
        net(torch.ones(3, WIDTH)).square().mean().backward()
        until_told("rank 0 has given up")
        return "went away"
    one_step(net, optimizer, rank, 1)
    with pytest.raises(ReductionError) as error:
        net(torch.ones(WIDTH))
    tell("rank 0 has given up")
    scheduler.detach()
    assert not any(map(is_lazy, net.parameters()))
    return str(error.value)


def test_a_stall_names_weights_and_ranks() -> None:
    message = run_ranks(2, failing)[0]
    assert "rank 0 waited" in message
    assert "for the weights that rank 1 has updated (middle.weight)" in message
    assert "Rank 1 " in message


def differing(rank: int) -> None:
    engine(nets()[0], shard_optimizer=rank == 0)


def test_all_ranks_must_set_it_alike() -> None:
    for message in errors_of_ranks(2, differing):
        assert "shard_optimizer is True on rank 0 and False on rank 1" in message


def compiled(rank: int) -> bool:
    net, plain = nets()
    scheduler, reference = engine(net), GradientScheduler(plain)
    optimizer, whole = adam(net), adam(plain)
    scheduler.shard(optimizer)
    run = torch.compile(net, backend="eager")
    for step in range(3):
        one_step(run if step else net, optimizer, rank, step)
        one_step(plain, whole, rank, step)
    scheduler.flush()
    reference.detach()
    return all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


@pytest.mark.slow
def test_where_torch_compiles_a_step_waits_for_all_weights() -> None:
    assert run_ranks(2, compiled, timeout_s=240.0) == [True, True]
