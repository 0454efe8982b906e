"""The linear closed forms against Tikhonov's solution, and trained nets against them."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch import Tensor

from zoo.data.deconvolution import DeconvolutionDataModule, gaussian_process_factor
from zoo.errors import TrainingDataError
from zoo.loss.model_constrained import randomized
from zoo.metric.sample_errors import relative_error
from zoo.model.closed_form import LinearProblem
from zoo.model.model_constrained import ModelConstrained
from zoo.model.tikhonov import Tikhonov
from zoo.net.mlp import MLP
from zoo.physics.deconvolution import Deconvolution

WEIGHT = 56.2


def _covariances(n: int) -> tuple[Tensor, Tensor]:
    factor = gaussian_process_factor(n, 0.1)
    noise = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    return factor @ factor.T + 0.1 * torch.eye(n, dtype=torch.float64), torch.diag(noise)


def _drawn(n_train: int) -> tuple[Deconvolution, DeconvolutionDataModule]:
    operator = Deconvolution(32)
    return operator, DeconvolutionDataModule(operator, n_train=n_train, n_val=50, n_test=50)


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("weighted", [False, True], ids=["identity", "covariances"])
@pytest.mark.parametrize("n_train", [1, 5, 33, 100])
def test_model_constrained_is_tikhonov_with_a_data_driven_prior(
    n_train: int, weighted: bool
) -> None:
    operator, data = _drawn(n_train)
    problem = LinearProblem(operator.matrix, *(_covariances(32) if weighted else ()))
    train, test = data.samples("train"), data.samples("test")
    net = problem.model_constrained(train.truth, train.data, WEIGHT)
    u0 = problem.data_driven_prior_mean(train.truth, train.data, WEIGHT, test.data)
    assert _gap(net(test.data), problem.tikhonov(test.data, WEIGHT, u0)) <= 1e-10


@pytest.mark.parametrize("weighted", [False, True], ids=["identity", "covariances"])
@pytest.mark.parametrize("n_train", [1, 5, 40])
def test_tnet_is_tikhonov_once_the_data_span_the_space(n_train: int, weighted: bool) -> None:
    operator, data = _drawn(n_train)
    problem = LinearProblem(operator.matrix, *(_covariances(32) if weighted else ()))
    copies = data.samples("train").data.repeat(-(-200 // n_train), 1)
    rows = randomized(copies, 0.1, torch.Generator().manual_seed(0))
    u0 = torch.linspace(-0.3, 0.2, 32, dtype=torch.float64)
    y = data.samples("test").data
    assert _gap(problem.tnet(rows, WEIGHT, u0)(y), problem.tikhonov(y, WEIGHT, u0)) <= 1e-10


def test_tnet_of_one_sample_without_randomisation_is_not() -> None:
    operator, data = _drawn(1)
    problem, u0 = LinearProblem(operator.matrix), torch.zeros(32, dtype=torch.float64)
    y = data.samples("test").data
    net = problem.tnet(data.samples("train").data, WEIGHT, u0)
    assert _gap(net(y), problem.tikhonov(y, WEIGHT, u0)) > 0.5


def test_naive_closed_form_is_the_least_squares_fit() -> None:
    _, data = _drawn(60)
    train = data.samples("train")
    net = LinearProblem(torch.eye(32, dtype=torch.float64)).naive(train.truth, train.data)
    ones = torch.ones(60, 1, dtype=torch.float64)
    fit = torch.linalg.lstsq(torch.cat([train.data, ones], 1), train.truth, driver="gelsd")
    expected = torch.cat([train.data, ones], 1) @ fit.solution
    assert _gap(net(train.data), expected) <= 1e-8


def test_closed_forms_are_stationary_points_of_their_losses() -> None:
    """The formulas against autograd on the losses that they are meant to minimise."""
    operator, data = _drawn(5)
    train = data.samples("train")
    problem = LinearProblem(operator.matrix)
    for kind, net in {
        "naive": problem.naive(train.truth, train.data),
        "model_constrained": problem.model_constrained(train.truth, train.data, WEIGHT),
        "tnet": problem.tnet(train.data, WEIGHT, torch.zeros(32, dtype=torch.float64)),
    }.items():
        model = ModelConstrained(MLP(32, 32), operator, torch.optim.Adam, kind=kind, weight=WEIGHT)
        model.double().net.layers[0].load_state_dict(net._asdict())
        batch = next(iter(data.train_dataloader()))
        loss = model.loss(batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert max(float(g.abs().max()) for g in gradients) <= 1e-9, kind


def test_the_matrix_free_baseline_equals_the_closed_one() -> None:
    operator, data = _drawn(1)
    y = data.samples("test").data
    expected = LinearProblem(operator.matrix).tikhonov(
        y, WEIGHT, torch.full((32,), 0.2, dtype=y.dtype)
    )
    assert _gap(Tikhonov(operator, WEIGHT, 0.2)(y), expected) <= 1e-10


def _trained(kind: str, data: DeconvolutionDataModule, operator: Deconvolution) -> ModelConstrained:
    optimizer = partial(
        torch.optim.LBFGS, max_iter=300, history_size=100, tolerance_grad=1e-14, tolerance_change=0
    )
    torch.manual_seed(0)  # whichever tests ran before
    model = ModelConstrained(
        MLP(32, 32, whiten=True),
        operator,
        optimizer,
        kind=kind,
        weight=WEIGHT,
        randomization=0.1,
        copies=200,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
def test_trained_tnet_of_one_sample_is_tikhonov_and_a_naive_net_is_far_off() -> None:
    operator, data = _drawn(1)
    test = data.samples("test")
    tikhonov = Tikhonov(operator, WEIGHT)(test.data)
    tnet, naive = (_trained(kind, data, operator)(test.data).detach() for kind in ("tnet", "naive"))
    assert _gap(tnet, tikhonov) <= 1e-5
    errors = [float(relative_error(u, test.truth).mean()) for u in (tikhonov, tnet, naive)]
    assert errors[1] <= 1.02 * errors[0]
    assert errors[2] >= 10 * errors[0]


def test_singular_covariance_is_named() -> None:
    singular = torch.ones(32, 32, dtype=torch.float64)
    with pytest.raises(TrainingDataError, match=r"Lambda \[32, 32\] is singular"):
        LinearProblem(Deconvolution(32).matrix, None, singular)


def test_covariance_of_another_size_is_named() -> None:
    with pytest.raises(TrainingDataError, match=r"Gamma .* Expected \[32, 32\], got \[4, 4\]"):
        LinearProblem(Deconvolution(32).matrix, torch.eye(4, dtype=torch.float64))


def test_zero_samples_are_named() -> None:
    problem, none = LinearProblem(Deconvolution(32).matrix), torch.zeros(0, 32).double()
    with pytest.raises(TrainingDataError, match="at least one of each, got 0 and 0"):
        problem.naive(none, none)
