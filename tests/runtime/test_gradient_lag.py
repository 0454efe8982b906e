"""What a backward gives out with ``gradient_lag=1``, in the ways in which training can be odd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from tests.ranks import run_ranks

WIDTH = 4


class Branches(nn.Module):
    """Two heads on a stem; a call uses the heads that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor, heads: str = "left right") -> Tensor:
        x = torch.tanh(self.stem(x))
        return sum(getattr(self, head)(x) for head in heads.split())


def net() -> Branches:
    torch.manual_seed(0)
    return Branches()


def engine(module: nn.Module, planner: str = "per_tensor", **config: Any) -> GradientScheduler:
    return GradientScheduler(module, GradSchedConfig(planner=planner, gradient_lag=1, **config))


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))


def mean_gradients(n_ranks: int, step: int, heads: Any = "left right") -> dict[str, Tensor]:
    """What the batches of all ranks come to; ``heads``: alike, or by rank. Only what is used."""
    total: dict[str, Tensor] = {}
    for rank in range(n_ranks):
        alone = net()
        used = heads if isinstance(heads, str) else heads[rank]
        alone(batch(rank, step), used).square().mean().backward()
        for name, param in alone.named_parameters():
            if param.grad is not None:
                total[name] = total.get(name, 0) + param.grad / n_ranks
    return total


def held(module: nn.Module) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def backward(module: nn.Module, rank: int, step: int, heads: str = "left right") -> None:
    module(batch(rank, step), heads).square().mean().backward()


def close(got: Tensor | None, expected: Tensor | float) -> bool:
    if got is None:
        return False
    return torch.allclose(got, torch.as_tensor(expected).expand_as(got), rtol=1e-5, atol=1e-7)


def plain_steps(rank: int) -> tuple[list[dict[str, Any]], str]:
    module = net()
    scheduler = engine(module)
    seen = []
    for step in range(3):
        module.zero_grad()
        backward(module, rank, step)
        seen.append(held(module))
    scheduler.detach()
    return seen, str(scheduler.schedule)


def test_the_first_gradient_is_zero_and_each_other_is_the_one_before() -> None:
    for seen, schedule in run_ranks(2, plain_steps):
        assert schedule == "R0 R1 R2 W0[-1] W1[-1] W2[-1]"
        for name in seen[0]:
            assert close(seen[0][name], 0.0)
            assert close(seen[1][name], mean_gradients(2, 0)[name])
            assert close(seen[2][name], mean_gradients(2, 1)[name])


def kept_steps(rank: int) -> list[dict[str, Any]]:
    """Nobody zeroes; one backward is by ``autograd.grad``, and one cycle is of two backwards."""
    module = net()
    scheduler = engine(module)
    seen = []
    for step in range(4):
        torch.autograd.grad(module(batch(rank, 9)).sum(), module.stem.weight)
        if step == 2:
            with scheduler.no_sync():
                backward(module, rank, 7)
        backward(module, rank, step)
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_gradients_that_nobody_zeroes_add_up_and_are_not_sent_again() -> None:
    for seen in run_ranks(2, kept_steps):
        for name in seen[0]:
            means = [mean_gradients(2, step)[name] for step in range(3)]
            extra = mean_gradients(2, 7)[name]
            assert close(seen[1][name], means[0])
            assert close(seen[2][name], means[0] + means[1])
            assert close(seen[3][name], means[0] + means[1] + means[2] + extra)


def branching_steps(rank: int) -> list[dict[str, Any]]:
    module = net()
    scheduler = engine(module, planner="single")  # used and unused ones share a buffer
    seen = []
    for step, heads in enumerate(("left right", "left", ("left", "right")[rank], "right")):
        module.zero_grad()
        backward(module, rank, step, heads)
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_what_no_rank_uses_keeps_its_gradient_and_its_turn() -> None:
    for seen in run_ranks(2, branching_steps):
        left, right = "left.weight", "right.weight"
        assert close(seen[1][left], mean_gradients(2, 0)[left])
        assert seen[1][right] is None
        # Used by one rank each: what the last backward that reached it has sent.
        assert close(seen[2][left], mean_gradients(2, 1, "left")[left])
        assert close(seen[2][right], mean_gradients(2, 0)[right])
        apart = mean_gradients(2, 2, ("left", "right"))
        assert close(seen[3][right], apart[right])
        assert seen[3][left] is None


def kept_for_long(rank: int) -> list[dict[str, Any]]:
    module = net()
    scheduler = engine(module, planner="single")
    seen = []
    for step, heads in enumerate(("left right", "left right", "left", "left", "left right")):
        backward(module, rank, step, heads)  # nobody zeroes
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_a_gradient_that_is_kept_over_backwards_that_do_not_reach_it_is_not_sent() -> None:
    name = "right.weight"
    for seen in run_ranks(2, kept_for_long):
        kept = mean_gradients(2, 0)[name]
        assert all(close(seen[step][name], kept) for step in (1, 2, 3))
        assert close(seen[4][name], kept + mean_gradients(2, 1)[name])


def dropped_between(rank: int) -> bool:
    """Nobody zeroes, but for once between two backwards of one step."""
    module = net()
    scheduler = engine(module)
    for step in range(2):
        backward(module, rank, step)
    with scheduler.no_sync():
        backward(module, rank, 8)
    module.zero_grad()
    backward(module, rank, 2)
    expected = mean_gradients(2, 1)
    alike = all(close(p.grad, expected[name]) for name, p in module.named_parameters())
    scheduler.detach()
    return alike


def test_what_is_dropped_between_two_backwards_of_a_step_stays_dropped() -> None:
    assert run_ranks(2, dropped_between) == [True, True]


def kept_on_one_rank(rank: int) -> list[dict[str, Any]]:
    module = net()
    scheduler = engine(module)
    seen = []
    for step, heads in enumerate(("left right", "left right", ("left", "right")[rank])):
        backward(module, rank, step, heads)  # nobody zeroes
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_what_one_rank_does_not_use_is_the_same_on_all() -> None:
    ranks = run_ranks(2, kept_on_one_rank)
    for seen in ranks:
        for name, gradient in seen[2].items():
            assert torch.equal(gradient, ranks[0][2][name])
            assert close(gradient, mean_gradients(2, 0)[name] + mean_gradients(2, 1)[name])


def one_step(module: nn.Module, optimizer: Any, rank: int, step: int) -> None:
    optimizer.zero_grad()
    backward(module, rank, step)
    optimizer.step()


def resumed(rank: int, planner: str) -> bool:
    """Weights after six steps in one go, and in two runs; the second plans anew."""
    whole, parts = net(), net()
    results = []
    for module, n_runs in ((whole, 1), (parts, 2)):
        scheduler = engine(module, planner)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        for step in range(6):
            if step == 3 and n_runs == 2:
                state, steps = scheduler.lagged_state(), optimizer.state_dict()
                scheduler.detach()
                scheduler = engine(module, "single")
                scheduler.restore_lagged(state)
                optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
                optimizer.load_state_dict(steps)
            one_step(module, optimizer, rank, step)
        state = scheduler.lagged_state()
        scheduler.detach()
        results.append({**module.state_dict(), **{f"lagged {n}": g for n, g in state.items()}})
    return all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_run_goes_on_from_its_state() -> None:
    assert run_ranks(2, resumed, "per_tensor") == [True, True]


def unfrozen(rank: int) -> list[Any]:
    module = net()
    module.left.requires_grad_(False)
    scheduler = engine(module)
    seen = []
    for step in range(4):
        if step == 1:
            module.left.requires_grad_(True)
        module.zero_grad()
        backward(module, rank, step)
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_what_is_unfrozen_begins_with_zeros_and_nothing_is_lost() -> None:
    for seen in run_ranks(2, unfrozen):
        assert close(seen[1]["left.weight"], 0.0)
        for step in (1, 2, 3):
            for name in seen[0]:
                if step > 1 or name != "left.weight":
                    assert close(seen[step][name], mean_gradients(2, step - 1)[name]), (step, name)


def cut_off(rank: int) -> list[Any]:
    """All ranks catch an exception in the midst of their second backward, and go on."""
    module = net()
    scheduler = engine(module)
    backward(module, rank, 0)

    def fail(_grad: Tensor) -> None:
        raise ZeroDivisionError

    handle = module.left.weight.register_hook(fail)
    module.zero_grad()
    with pytest.raises(ZeroDivisionError):
        backward(module, rank, 1)
    handle.remove()
    seen = []
    for step in (2, 3):
        module.zero_grad()
        backward(module, rank, step)
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_a_backward_that_was_cut_off_everywhere_is_left_out() -> None:
    for seen in run_ranks(2, cut_off):
        for name in seen[0]:
            assert close(seen[0][name], mean_gradients(2, 0)[name])
            assert close(seen[1][name], mean_gradients(2, 2)[name])


def uneven(rank: int) -> list[Any]:
    """Rank 1 has run out after one batch; the sum is divided by the ranks that have one."""
    module = net()
    scheduler = engine(module)
    seen = []
    for step in scheduler.join(range(3) if rank == 0 else range(1), divide_by="active"):
        module.zero_grad()
        if step is None:
            scheduler.skip_backward()
        else:
            backward(module, rank, step)
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_uneven_data() -> None:
    for seen in run_ranks(2, uneven):
        for name in seen[0]:
            assert close(seen[1][name], mean_gradients(2, 0)[name])
            assert close(seen[2][name], mean_gradients(1, 1)[name])


def uneven_and_kept(rank: int) -> list[Any]:
    """As ``uneven``, but nobody zeroes."""
    module = net()
    scheduler = engine(module)
    seen = []
    for step in scheduler.join(range(4) if rank == 0 else range(2), divide_by="active"):
        if step is None:
            scheduler.skip_backward()
        else:
            backward(module, rank, step)
        seen.append(held(module))
    scheduler.detach()
    return seen


def test_uneven_data_and_gradients_that_nobody_zeroes() -> None:
    ranks = run_ranks(2, uneven_and_kept)
    for seen in ranks:
        for name, gradient in seen[3].items():
            assert torch.equal(gradient, ranks[0][3][name])
            both = mean_gradients(2, 0)[name] + mean_gradients(2, 1)[name]
            assert close(gradient, both + mean_gradients(1, 2)[name])


def pieces(profile: Any, _cost: Any) -> Any:
    names = tuple((param.name,) for param in profile.params)
    return GroupPlan("pieces", names, launches=(0, 1, 2, 1, 2, 2))


def measured(rank: int, reduce_dtype: str | None) -> tuple[bool, Any]:
    """Planned from measurements, in pieces and in another dtype; every step is recorded."""
    module = net()
    scheduler = engine(module, pieces, reduce_dtype=reduce_dtype, record_every_n_steps=1)
    alike = True
    for step in range(20):
        module.zero_grad()
        backward(module, rank, step)
        if step:
            expected = mean_gradients(2, step - 1)
            tolerance = 1e-7 if reduce_dtype is None else 0.02
            alike &= all(
                torch.allclose(p.grad, expected[n], rtol=tolerance + 1e-5, atol=tolerance)
                for n, p in module.named_parameters()
            )
    report = scheduler.report(across_ranks=True)
    scheduler.detach()
    return alike, report


@pytest.mark.parametrize("reduce_dtype", [None, "bfloat16"])
def test_pieces_dtypes_and_the_report(reduce_dtype: str | None) -> None:
    for alike, report in run_ranks(2, measured, reduce_dtype):
        assert alike
        assert [row.label for row in report.rows] == ["0", "1", "2"]
        assert report.predicted.exposed_s >= 0
        assert 0 <= report.exposed_s <= report.step_s
