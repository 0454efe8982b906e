"""The hierarchical all-reduce against the flat one, on real ranks of emulated nodes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.hierarchical import HierarchicalAllReduce, Layout, layout_of
from tests.ranks import run_ranks

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
