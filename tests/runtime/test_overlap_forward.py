"""What others see while groups are left to the next forward, and what happens when things break."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.lazy import is_lazy
from tests.ranks import errors_of_ranks, run_ranks

WIDTH = 6


class Chain(nn.Module):
    """Three layers; the head's group is launched first, so that it is never left open."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.stem(x)))))


def engine(net: nn.Module, **config: Any) -> GradientScheduler:
    return GradientScheduler(
        net, GradSchedConfig(planner="per_tensor", overlap_forward=True, **config)
    )


def nets(make: Callable[[], nn.Module] = Chain) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = make()
    return net, copy.deepcopy(net)


def one_step(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int = 0) -> None:
    generator = torch.Generator().manual_seed(10 * step + rank)
    optimizer.zero_grad()
    net(torch.randn(3, WIDTH, generator=generator)).square().mean().backward()
    optimizer.step()


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.1)


def overlapped(rank: int, **config: Any) -> tuple[Chain, Any, GradientScheduler, Chain]:
    """A net with groups left open, its optimizer and engine, and the net as it must be."""
    net, plain = nets()
    scheduler = engine(net, **config)
    optimizer = adam(net)
    scheduler.overlap(optimizer)
    one_step(net, optimizer, rank)
    assert scheduler.n_open == 2
    reference = GradientScheduler(plain, GradSchedConfig(planner="single"))
    one_step(plain, adam(plain), rank)
    reference.detach()
    return net, optimizer, scheduler, plain


# How someone may look at the stem's weight, which is due: what it must find is the plain net's.
LOOKS: dict[str, Callable[[Chain], Tensor]] = {
    "detach": lambda net: net.stem.weight.detach(),
    "data": lambda net: net.stem.weight.data,
    "state_dict": lambda net: net.state_dict()["stem.weight"],
    "state_dict of variables": lambda net: net.state_dict(keep_vars=True)["stem.weight"] * 1,
    "clone": lambda net: net.stem.weight.clone(),
    "deepcopy": lambda net: copy.deepcopy(net).stem.weight,
    "save": lambda net: saved(net),
    "numpy": lambda net: torch.from_numpy(net.stem.weight.detach().numpy()),
    "a list": lambda net: torch._foreach_mul([net.stem.weight, net.head.weight], 1.0)[0],
    "in a dict": lambda net: torch.func.functional_call(
        net, {"stem.weight": net.stem.weight}, torch.eye(WIDTH)
    ),
    "the module": lambda net: net.stem(torch.eye(WIDTH)),
    "its function": lambda net: F.linear(torch.eye(WIDTH), net.stem.weight),
    "a view": lambda net: net.stem.weight[0],
    "to another dtype": lambda net: copy.copy(net).to(torch.float64).stem.weight,
    "an average": lambda net: averaged(net),
    "its gradient": lambda net: net.stem.weight.grad.clone(),
    "the norm of gradients": lambda net: nn.utils.get_total_norm(
        [p.grad for p in net.parameters()]
    ),
    "text": lambda net: torch.tensor([float(len(repr(net.stem.weight)))]),
}


def saved(net: Chain) -> Tensor:
    file = io.BytesIO()
    torch.save(net.stem.weight, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def averaged(net: Chain) -> Tensor:
    average = AveragedModel(Chain(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(net)
    return average.module.stem.weight


def looks(rank: int) -> list[str]:
    wrong = []
    for name, look in LOOKS.items():
        net, _, scheduler, plain = overlapped(rank)
        assert is_lazy(net.stem.weight)
        if not torch.equal(look(net), look(plain)):
            wrong.append(name)
        assert not is_lazy(net.stem.weight), name
        scheduler.detach()
    return wrong


def test_whoever_looks_finds_what_there_would_be_without() -> None:
    assert run_ranks(2, looks) == [[], []]


def metadata_and_zeroing(rank: int) -> None:
    net, optimizer, scheduler, plain = overlapped(rank)
    weight = net.stem.weight
    assert (weight.shape, weight.numel(), weight.dtype) == ((WIDTH, WIDTH), 36, torch.float32)
    optimizer.zero_grad()
    net.requires_grad_(False).requires_grad_(True)
    assert len(list(net.parameters())) == 3
    assert is_lazy(weight)
    assert scheduler.n_open == 2
    # Each module waits for its own.
    net.stem(torch.ones(WIDTH))
    assert scheduler.n_open == 1
    assert weight.grad is None
    assert torch.equal(weight, plain.stem.weight)
    assert is_lazy(net.middle.weight)
    scheduler.flush()
    assert scheduler.n_open == 0
    assert torch.equal(net.middle.weight, plain.middle.weight)


def test_zeroing_and_questions_of_form_end_no_wait() -> None:
    run_ranks(2, metadata_and_zeroing)


def evaluation_first(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first to use the weights is an evaluation in inference mode, in another dtype."""
    net, plain = nets()
    scheduler, optimizer = engine(net), adam(net)
    reference, plain_optimizer = GradientScheduler(plain), adam(plain)
    scheduler.overlap(optimizer)
    for step in range(3):
        one_step(net, optimizer, rank, step)
        one_step(plain, plain_optimizer, rank, step)
        for model in (net, plain):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                model(torch.ones(WIDTH))
    reference.detach()
    scheduler.detach()
    return net.state_dict(), plain.state_dict()


def test_an_evaluation_that_comes_first_changes_nothing() -> None:
    for ours, theirs in run_ranks(2, evaluation_first):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def optimizer_state(rank: int) -> None:
    net, optimizer, scheduler, plain = overlapped(rank)
    state = optimizer.state_dict()["state"]
    assert len(state) == 3
    assert scheduler.n_open == 0
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


def test_the_optimizers_state_is_complete() -> None:
    run_ranks(2, optimizer_state)


def hooks_on_a_step(rank: int) -> None:
    net, _ = nets()
    scheduler, optimizer = engine(net), adam(net)
    seen: list[tuple[int, int]] = []

    def hook(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        seen.append((len(optimizer.param_groups[0]["params"]), scheduler.n_open))

    optimizer.register_step_pre_hook(hook)
    optimizer.register_step_post_hook(hook)
    scheduler.overlap(optimizer)
    for step in range(2):
        one_step(net, optimizer, rank, step)
    scheduler.flush()
    # Once before and once after each step, with all parameters in their group, open or not.
    assert seen == [(3, 2)] * 4


def test_hooks_on_a_step_run_once_a_step_and_see_all_parameters() -> None:
    run_ranks(2, hooks_on_a_step)


def a_step_that_raises(rank: int) -> None:
    net, _, scheduler, _ = overlapped(rank)
    scheduler.flush()

    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if closure is not None:
                closure()
                raise ZeroDivisionError

    trusted = engine_trusting(net, scheduler, "Fails")
    optimizer = Fails(net.parameters(), lr=0.1)
    trusted.overlap(optimizer)
    with pytest.raises(ZeroDivisionError):
        one_step(net, optimizer, rank)
    trusted.flush()
    with pytest.raises(ZeroDivisionError):
        one_step(net, optimizer, rank)
    trusted.detach()
    assert len(optimizer.param_groups[0]["params"]) == 3


def engine_trusting(net: nn.Module, old: GradientScheduler, name: str) -> GradientScheduler:
    old.detach()
    return engine(net, per_parameter_optimizers=(name,))


def test_a_step_that_raises_leaves_the_parameter_groups_whole() -> None:
    run_ranks(2, a_step_that_raises)


def refusals(rank: int) -> list[str]:
    net, _ = nets()
    scheduler = engine(net)
    messages = []
    for optimizer in (
        torch.optim.LBFGS(net.parameters()),
        torch.optim.SGD(net.parameters(), lr=0.1, differentiable=True),
    ):
        with pytest.raises(GradSchedError) as error:
            scheduler.overlap(optimizer)
        messages.append(str(error.value))
    with pytest.raises(GradSchedError) as error:
        scheduler.register_comm_hook(None, refusals)
    messages.append(str(error.value))
    scheduler.detach()
    plain = GradientScheduler(net)
    with pytest.raises(GradSchedError) as error:
        plain.overlap(adam(net))
    return [*messages, str(error.value)]


def test_what_cannot_overlap_is_refused_by_name() -> None:
    whole, differentiable, hook, without = run_ranks(2, refusals)[0]
    assert "LBFGS is not known to update each parameter from its own gradient alone" in whole
    assert "per_parameter_optimizers=('LBFGS',)" in whole
    assert "expected differentiable=False of SGD" in differentiable
    assert "expected overlap_forward=False with a communication hook" in hook
    assert "expected overlap_forward=True, got False" in without


def test_the_order_into_the_forward_is_a_static_one() -> None:
    with pytest.raises(ValueError, match=r"expected schedule='static'.*got schedule='auto'"):
        GradSchedConfig(overlap_forward=True, schedule="auto")


def unknown_optimizer(rank: int) -> tuple[int, bool]:
    """Of an optimizer that the engine was not told of, a step waits for all."""
    net, plain = nets()
    scheduler, reference = engine(net), GradientScheduler(plain)
    for step in range(2):
        one_step(net, adam_of(net), rank, step)
        one_step(plain, adam_of(plain), rank, step)
    alike = all(
        torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True)
    )
    reference.detach()
    return scheduler.n_open, alike


def adam_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def test_a_step_of_an_optimizer_that_was_not_given_waits() -> None:
    assert run_ranks(2, unknown_optimizer) == [(0, True)] * 2


class Odd(Chain):
    """Uses weights past their modules, by native code, twice, or on one rank only."""

    def __init__(self, kind: str, rank: int) -> None:
        super().__init__()
        self.kind, self.rank = kind, rank

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "past its module":
            x = F.linear(x, self.middle.weight)
        elif self.kind == "twice":
            x = self.stem(self.middle(x))
        elif self.kind == "on one rank" and self.rank == 1:
            return self.head(self.stem(x))
        return super().forward(x)


def odd_nets(rank: int) -> list[str]:
    wrong = []
    for kind in ("past its module", "twice", "on one rank", "as it comes"):
        net, plain = nets(lambda kind=kind: Odd(kind, rank))
        scheduler, reference = engine(net), GradientScheduler(plain)
        optimizer, plain_optimizer = adam(net), adam(plain)
        scheduler.overlap(optimizer)
        for step in range(4):
            one_step(net, optimizer, rank, step)
            one_step(plain, plain_optimizer, rank, step)
        pairs = zip(net.parameters(), plain.parameters(), strict=True)
        if not all(torch.equal(p, q) for p, q in pairs):
            wrong.append(kind)
        scheduler.detach()
        reference.detach()
    return wrong


def test_weights_that_are_used_in_odd_ways_are_up_to_date() -> None:
    assert run_ranks(2, odd_nets) == [[], []]


def kept_gradients(rank: int) -> bool:
    """Gradients pile up on those of the step before; one graph is gone through twice."""
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        if is_ours:
            scheduler.overlap(optimizer)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(3):
            loss = net(torch.randn(3, WIDTH, generator=generator)).square().mean()
            loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_gradients_that_are_kept_and_graphs_that_are_reused() -> None:
    # The second backward changes no weight that the graph has saved: none is due before the step.
    assert run_ranks(2, kept_gradients) == [True, True]


def in_pieces(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    names = tuple((param.name,) for param in profile.params)
    return GroupPlan("in_pieces", names, launches=(0, 1, 2, 1, 2, 2))


def planned(rank: int, planner: Any, reduce_dtype: str | None) -> tuple[bool, Any, Any]:
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        config = GradSchedConfig(
            planner=planner if is_ours else "ddp",
            overlap_forward=is_ours,
            reduce_dtype=reduce_dtype,
            record_every_n_steps=1,
        )
        scheduler = GradientScheduler(net, config)
        optimizer = adam(net)
        if is_ours:
            scheduler.overlap(optimizer)
            ours = scheduler
        for step in range(36):
            one_step(net, optimizer, rank, step)
        results.append([p.detach().clone() for p in net.parameters()])
        if not is_ours:
            scheduler.detach()
    alike = all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    report = ours.report(across_ranks=True)
    schedule = str(ours.schedule)
    ours.detach()
    return alike, schedule, report


@pytest.mark.parametrize("reduce_dtype", [None, "bfloat16"])
def test_pieces(reduce_dtype: str | None) -> None:
    for alike, schedule, report in run_ranks(2, planned, in_pieces, reduce_dtype):
        assert alike
        assert schedule == "R0 R1 R2 R1 R2 R2 W0 | W2 W1"
        assert [row.label for row in report.rows] == ["0", "1", "2"]


def test_the_best_plans_are_tried_on_the_job_and_the_report_is_of_whole_steps() -> None:
    for alike, schedule, report in run_ranks(2, planned, "auto", None):
        assert alike
        assert schedule.endswith("W0") or "|" in schedule
        assert 2 <= len(report.tried) <= 4
        assert report.bounds.step_s <= report.bounds.backward_s
        assert "no forward and backward take less than" in str(report)
        assert 0 <= report.exposed_s <= report.step_s


def cut_off(rank: int) -> bool:
    """All ranks catch an exception in the midst of a backward, and go on."""
    net, _ = nets()
    scheduler, optimizer = engine(net), adam(net)
    scheduler.overlap(optimizer)
    one_step(net, optimizer, rank)

    def fail(_grad: Tensor) -> None:
        raise ZeroDivisionError

    handle = net.middle.weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        one_step(net, optimizer, rank, 1)
    handle.remove()
    one_step(net, optimizer, rank, 2)
    scheduler.flush()
    return all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_backward_that_was_cut_off_leaves_nothing_open() -> None:
    assert run_ranks(2, cut_off) == [True, True]


def unfrozen(rank: int) -> bool:
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        net.stem.requires_grad_(False)
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(5):
            if step == 2:
                net.stem.requires_grad_(True)
            one_step(net, optimizer, rank, step)
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_what_is_unfrozen_is_reduced_from_then_on() -> None:
    assert run_ranks(2, unfrozen) == [True, True]


def dropped(rank: int) -> bool:
    """A gradient that is set to None while it is under way."""
    net, _ = nets()
    scheduler, optimizer = engine(net), adam(net)
    scheduler.overlap(optimizer)
    net(torch.ones(WIDTH)).sum().backward()
    before = net.stem.weight.clone()
    net.stem.weight.grad = None
    assert scheduler.n_open == 2
    optimizer.step()
    scheduler.flush()
    return net.stem.weight.grad is None and torch.equal(net.stem.weight, before)


def test_a_gradient_that_is_dropped_while_it_is_under_way_updates_nothing() -> None:
    assert run_ranks(2, dropped) == [True, True]


def unannounced(rank: int) -> None:
    """A backward of an old graph past the module's own forward, on top of what is open."""
    net, _ = nets()
    scheduler = engine(net)
    assert scheduler.n_open == 0
    inner = net.stem(torch.ones(WIDTH)).sum()
    net(torch.ones(WIDTH)).sum().backward()
    inner.backward()


def test_a_backward_that_nobody_announced_on_top_of_open_gradients_is_an_error() -> None:
    for message in errors_of_ranks(2, unannounced):
        assert "parameter 'stem.weight' got a gradient while group 2 (stem.weight)" in message
        assert "Call scheduler.flush() or scheduler.prepare(loss) before it." in message


def scaled(rank: int) -> bool:
    results = []
    for is_ours in (True, False):
        net, _ = nets()
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer, scaler = adam(net), torch.amp.GradScaler("cpu", init_scale=1024.0)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.full((3, WIDTH), torch.inf if step == 2 and rank == 1 else 1.0 + rank)
            scaler.scale(net(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach().clone() for p in net.parameters()])
        scheduler.detach()
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_loss_scaling_looks_at_all_gradients_and_skips_on_all_ranks() -> None:
    assert run_ranks(2, scaled) == [True, True]


def compiled(rank: int, how: str) -> tuple[bool, list[int]]:
    """Compiled after two steps, with groups open, as a whole or in part."""
    results, n_open = [], []
    for is_ours in (True, False):
        torch._dynamo.reset()
        net, _ = nets()
        run: Any = net
        scheduler = engine(net) if is_ours else GradientScheduler(net)
        optimizer = adam(net)
        if is_ours:
            scheduler.overlap(optimizer)
        for step in range(4):
            if step == 2 and how == "a block in place":
                net.middle.compile(backend="eager")
            elif step == 2:
                run = torch.compile(net, backend="eager")
            one_step(run, optimizer, rank, step)
            if is_ours:
                n_open.append(scheduler.n_open)
        scheduler.detach()
        results.append([p.detach().clone() for p in net.parameters()])
    return all(torch.equal(p, q) for p, q in zip(*results, strict=True)), n_open


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("how", ["a block in place", "the module"])
def test_where_torch_compiles_nothing_is_left_open(how: str) -> None:
    for alike, n_open in run_ranks(2, compiled, how):
        assert alike
        assert n_open == [2, 2, 0, 0]


def failing(rank: int) -> str:
    net, _ = nets()
    scheduler, optimizer = engine(net, stall_timeout_s=3.0), adam(net)
    scheduler.overlap(optimizer)
    one_step(net, optimizer, rank)
    scheduler.flush()
    if rank == 1:  # it never sends what comes last
        scheduler._launches._sequence = scheduler._launches._sequence[:1]
        one_step_without_waiting(net, scheduler)
        return "went away"
    one_step(net, optimizer, rank, 1)
    try:
        net(torch.ones(WIDTH))
    except ReductionError as error:
        scheduler.detach()
        assert not any(map(is_lazy, net.parameters()))
        return str(error)
    raise AssertionError("expected a ReductionError")


def one_step_without_waiting(net: nn.Module, scheduler: GradientScheduler) -> None:
    import time

    scheduler._launches._left_open = ()
    net(torch.ones(3, WIDTH)).square().mean().backward()
    time.sleep(6.0)


@pytest.mark.slow
def test_a_stall_in_the_forward_names_group_parameters_and_ranks() -> None:
    message = run_ranks(2, failing)[0]
    assert "rank 0 waited" in message
    assert "for group 2 (stem.weight) and gives up" in message
    assert "Rank 1 " in message


def differing(rank: int) -> None:
    engine(nets()[0]) if rank == 0 else GradientScheduler(nets()[0])


def test_all_ranks_must_set_it_alike() -> None:
    for message in errors_of_ranks(2, differing):
        assert "overlap_forward is True on rank 0 and False on rank 1" in message
