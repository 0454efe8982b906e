"""The hierarchical all-reduce against the flat one, on real ranks of emulated nodes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.hierarchical import HierarchicalAllReduce
from tests.ranks import run_ranks
from tests.runtime.threads import left_threads

TIMEOUT_S = 20.0


def gradient(rank: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank)).to(dtype)


def reduced(rank: int, node_of_rank: list[int], numels: list[int], dtype: torch.dtype) -> list:
    """Each buffer as reduced by the hierarchy and flat, all of them under way at once."""
    collectives = Collectives(None, torch.device("cpu"), TIMEOUT_S)
    network = HierarchicalAllReduce(collectives, node_of_rank, TIMEOUT_S, part_nbytes=4096)
    ours = [gradient(rank, numel, dtype) for numel in numels]
    works = [network.all_reduce(flat) for flat in ours]
    flats = [gradient(rank, numel, dtype) for numel in numels]
    for flat, work in zip(flats, works, strict=True):
        dist.all_reduce(flat)
        work.wait()
    network.close()
    collectives.close()
    return [(a.float().numpy(), b.float().numpy()) for a, b in zip(ours, flats, strict=True)]


@pytest.mark.parametrize(
    "node_of_rank",
    [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1], [0, 0, 1, 1, 1]],
    ids=["2+2", "2+2 by turns", "3+1", "1+2", "2+3"],
)
def test_equals_the_flat_sum_and_is_the_same_bits_on_all_ranks(node_of_rank):
    numels = [1, 2, 3, 1000, 5001, 77]
    results = run_ranks(len(node_of_rank), reduced, node_of_rank, numels, torch.float32)
    for buffers in zip(*results, strict=True):
        for hierarchical, flat in buffers:
            error = torch.tensor(hierarchical - flat).norm() / torch.tensor(flat).norm()
            assert error < 1e-6
            assert hierarchical.tobytes() == buffers[0][0].tobytes()


def test_bf16_is_summed_as_well_as_flat_and_the_same_on_all_ranks():
    results = run_ranks(4, reduced, [0, 0, 1, 1], [3, 4097], torch.bfloat16)
    exact = [sum(gradient(r, n, torch.bfloat16).double() for r in range(4)) for n in (3, 4097)]
    for buffers, right in zip(zip(*results, strict=True), exact, strict=True):
        for hierarchical, flat in buffers:
            ours = (torch.tensor(hierarchical) - right).norm() / right.norm()
            theirs = (torch.tensor(flat) - right).norm() / right.norm()
            assert ours < max(1.5 * float(theirs), 2**-9)
            assert hierarchical.tobytes() == buffers[0][0].tobytes()


def among_some(rank: int) -> float:
    """Ranks 1 to 4 of 5 sum up their numbers in a group of their own, twice over."""
    group = dist.new_group([1, 2, 3, 4])
    flat = torch.tensor([float(rank)])
    if rank > 0:
        for _ in range(2):
            collectives = Collectives(group, torch.device("cpu"), TIMEOUT_S)
            network = HierarchicalAllReduce(collectives, [0, 0, 1, 1], TIMEOUT_S)
            network.all_reduce(flat).wait()
            network.close()
            collectives.close()
    dist.barrier()
    return float(flat)


def test_a_sub_group_can_have_one_again_and_again():
    assert run_ranks(5, among_some) == [0.0, 40.0, 40.0, 40.0, 40.0]


def silent_rank(rank: int) -> str:
    """Rank 3 never reduces; the others must not wait for longer than the timeout."""
    collectives = Collectives(None, torch.device("cpu"), TIMEOUT_S)
    network = HierarchicalAllReduce(collectives, [0, 0, 1, 1], timeout_s=8.0)
    dist.barrier()  # the timeout is that of rank 3, and of nobody who still connects
    message = ""
    if rank != 3:
        works = [network.all_reduce(gradient(rank, 1000)) for _ in range(3)]
        for work in works:
            with pytest.raises(RuntimeError) as error:
                work.wait()
            message = str(error.value)
    dist.barrier()
    network.close()
    collectives.close()
    assert left_threads("node") == []
    return message


def test_a_rank_that_does_not_come_fails_the_works_of_all_others():
    *others, absent = run_ranks(4, silent_rank)
    assert absent == ""
    # Rank 2 waits for its neighbour; rank 0 and 1 for their rails, or what rank 2 broke off.
    assert others[2].startswith("the reduction inside the node failed: ")
    for message in others[:2]:
        assert message.startswith("the reduction between nodes failed: ")


def closed_early(rank: int) -> bool:
    """Rank 0 closes while the others wait for it: they end long before the timeout."""
    collectives = Collectives(None, torch.device("cpu"), TIMEOUT_S)
    network = HierarchicalAllReduce(collectives, [0, 0, 1, 1], timeout_s=300.0)
    network.all_reduce(gradient(rank, 10)).wait()
    if rank == 0:
        network.close()
    else:
        with pytest.raises(RuntimeError, match="failed"):
            network.all_reduce(gradient(rank, 10)).wait()
        network.close()
    dist.barrier()
    collectives.close()
    return left_threads("node") == []


def test_peers_of_a_closed_rank_end_at_once():
    assert run_ranks(4, closed_early) == [True] * 4
