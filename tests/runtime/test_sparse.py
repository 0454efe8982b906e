"""Sparse gradients of embeddings: beside DDP on real ranks, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import ReductionError
from tests.parity.reference import average_gradients
from tests.ranks import errors_of_ranks, run_ranks

WIDTH = 4
N_ROWS = 10


class Words(nn.Module):
    """Two sparse embeddings and a dense head; which embeddings a forward uses is an argument."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.word = nn.Embedding(N_ROWS, WIDTH, sparse=sparse)
        self.bag = nn.EmbeddingBag(N_ROWS, WIDTH, mode="sum", sparse=sparse)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, index: Tensor, used: str) -> Tensor:
        x = torch.zeros(len(index), WIDTH)
        if "w" in used:
            x = x + self.word(index[:, 0])
        if "b" in used:
            x = x + self.bag(index)
        return torch.tanh(self.head(x))


def entries(grad: Tensor | None) -> Any:
    """What a gradient holds, comparable: None, dense values, or indices and values."""
    if grad is None:
        return None
    if not grad.is_sparse:
        return grad.clone()
    grad = grad.coalesce()
    return grad.indices().clone(), grad.values().clone()


def alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, tuple):
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return theirs is None if ours is None else torch.equal(ours, theirs)


def beside_ddp(rank: int, kind: str) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    ours = Words()
    theirs = deepcopy(ours)
    scheduler = GradientScheduler(ours)
    ddp = DistributedDataParallel(theirs)
    if kind == "hook":
        scheduler.register_comm_hook(None, default_hooks.allreduce_hook)
        ddp.register_comm_hook(None, default_hooks.allreduce_hook)
    loops = [
        (forward, no_sync, torch.optim.SGD(forward.parameters(), lr=0.1))
        for forward, no_sync in ((ours, scheduler.no_sync), (ddp, ddp.no_sync))
    ]
    steps = []
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        micro = [torch.randint(N_ROWS, (3, 2), generator=generator) for _ in range(2)]
        for forward, no_sync, optimizer in loops:
            optimizer.zero_grad(set_to_none=kind != "to_zero")
            for i, index in enumerate(micro if kind == "accumulate" else micro[:1]):
                is_last = kind != "accumulate" or i == 1
                with nullcontext() if is_last else no_sync():
                    forward(index, "wb").sum().backward()
        grads = zip(ours.named_parameters(), theirs.parameters(), strict=True)
        steps.append({n: (entries(p.grad), entries(q.grad)) for (n, p), q in grads})
        for *_, optimizer in loops:
            optimizer.step()
    return steps


@pytest.mark.parametrize("kind", ["plain", "accumulate", "to_zero", "hook"])
def test_sparse_gradients_are_as_in_ddp(kind: str) -> None:
    ranks = run_ranks(2, beside_ddp, kind)
    for rank, steps in enumerate(ranks):
        assert isinstance(steps[0]["word.weight"][0], tuple), "sparse"
        for i, step in enumerate(steps):
            for name, (ours, theirs) in step.items():
                assert alike(ours, theirs), (rank, i, name)
                assert alike(ours, ranks[0][i][name][0]), (rank, i, name, "across ranks")


def partly_used(rank: int, uses: list[tuple[str, str]], zero: bool) -> list[dict[str, Any]]:
    """Beside the same net with dense gradients and the slow reference: DDP refuses this."""
    torch.manual_seed(0)
    ours = Words()
    dense = Words(sparse=False)
    dense.load_state_dict(ours.state_dict())
    GradientScheduler(ours)
    steps = []
    for step, use in enumerate(uses):
        index = torch.tensor([[rank, step], [2, 3]])
        for net in (ours, dense):
            if zero:
                net.zero_grad()
            net(index, use[rank]).sum().backward()
        if zero:
            average_gradients(dense)
        grads = zip(ours.named_parameters(), dense.parameters(), strict=True)
        steps.append({n: (as_dense(p.grad), as_dense(q.grad)) for (n, p), q in grads})
    return steps


def as_dense(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.to_dense().clone()


SOME = [("w", "b"), ("wb", "b"), ("w", "wb")]
SAME = [("w", "w"), ("wb", "w"), ("b", "b"), ("w", "w")]


@pytest.mark.parametrize("uses", [SOME, SAME])
def test_an_embedding_that_some_ranks_do_not_use_adds_nothing_there(
    uses: list[tuple[str, str]],
) -> None:
    ranks = run_ranks(2, partly_used, uses, True)
    for rank, steps in enumerate(ranks):
        for i, step in enumerate(steps):
            for name, (ours, reference) in step.items():
                assert alike(ours, reference), (rank, i, name)


def test_a_kept_sparse_gradient_outlives_steps_that_use_it_nowhere() -> None:
    for steps in run_ranks(2, partly_used, [("w", "w"), ("b", "b"), ("b", "b")], False):
        first = steps[0]["word.weight"][0]
        assert first.abs().sum() > 0
        assert all(torch.equal(step["word.weight"][0], first) for step in steps)


def planned(rank: int, planner: str) -> tuple[tuple[str, ...], ...]:
    net = Words()
    scheduler = GradientScheduler(net, GradSchedConfig(planner=planner))
    for _ in range(9):
        net(torch.tensor([[rank, 1]]), "wb").sum().backward()
    assert scheduler.plan is not None
    return scheduler.plan.groups


@pytest.mark.parametrize("planner", ["ddp", "single", "optimal"])
def test_planners_keep_a_sparse_gradient_alone(planner: str) -> None:
    groups = run_ranks(2, planned, planner)[0]
    assert ("word.weight",) in groups
    assert ("bag.weight",) in groups
    assert sorted(sum(groups, ())) == sorted(name for name, _ in Words().named_parameters())


def cast(rank: int) -> Any:
    net = Words()
    GradientScheduler(net, GradSchedConfig(reduce_dtype="bf16"))
    net.word(torch.tensor([rank, 5])).mul(1 + 2**-10).sum().backward()
    assert net.word.weight.grad.dtype is torch.float32
    return entries(net.word.weight.grad), entries(net.bag.weight.grad)


def test_sparse_gradients_may_travel_in_another_dtype() -> None:
    for (indices, values), bag in run_ranks(2, cast):
        assert indices.tolist() == [[0, 1, 5]]
        # 1 + 2**-10 is 1 in bfloat16.
        assert values.tolist() == [[0.5] * WIDTH, [0.5] * WIDTH, [1.0] * WIDTH]
        assert bag is None, "used by no rank"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(N_ROWS, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, N_ROWS, bias=False)
        self.head.weight = self.word.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.word(index))


def dense_after_all(rank: int) -> None:
    net = Tied()
    GradientScheduler(net)
    net(torch.tensor([1, 2])).sum().backward()


def test_a_dense_gradient_where_a_sparse_one_was_promised_is_refused_by_name() -> None:
    for message in errors_of_ranks(2, dense_after_all):
        assert message.startswith("ReductionError: expected a sparse gradient of 'word.weight'")
        assert "sparse=False" in message


def deserted(rank: int) -> str:
    """The group that carries the reductions would wait for the other rank much longer."""
    net = nn.EmbeddingBag(6, 2, sparse=True)
    config = GradSchedConfig(planner="ddp", stall_timeout_s=10)
    scheduler = GradientScheduler(net, config, process_group=dist.new_group())
    words = torch.tensor([[1, 2]])
    net(words).sum().backward()
    message = ""
    if rank == 0:
        with pytest.raises(ReductionError) as caught:
            net(words).sum().backward()
        message = str(caught.value)
    dist.barrier()
    scheduler.detach()
    return message


def test_the_wait_for_a_sparse_group_ends_with_stall_timeout_s() -> None:
    message, _ = run_ranks(2, deserted)
    assert "group 0 (weight)" in message
    assert "it did not finish in time for stall_timeout_s=10" in message


class Residual(nn.Module):
    """What flows back through the sum is also the values of the embedding's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.word = nn.Embedding(N_ROWS, WIDTH, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.stem(x) + self.word(torch.arange(len(x)))))


def below_an_embedding(rank: int, reduce_dtype: str | None) -> bool:
    torch.manual_seed(0)
    net = Residual()
    plain = deepcopy(net)
    GradientScheduler(net, GradSchedConfig(planner="per_tensor", reduce_dtype=reduce_dtype))
    x = torch.full((3, WIDTH), 0.1 * (rank + 1))
    for module in (net, plain):
        module(x).sum().backward()
    average_gradients(plain.stem)
    pairs = zip(net.stem.parameters(), plain.stem.parameters(), strict=True)
    return all(torch.equal(ours.grad, other.grad) for ours, other in pairs)


@pytest.mark.parametrize("reduce_dtype", [None, "float32"])
def test_reducing_a_sparse_gradient_leaves_alone_what_backward_goes_on_with(
    reduce_dtype: str | None,
) -> None:
    assert run_ranks(2, below_an_embedding, reduce_dtype) == [True, True]
