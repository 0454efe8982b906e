"""The autoencoders: their losses against closed forms, their two halves, their bad inputs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from zoo.data.coefficients import CoefficientsDataModule
from zoo.data.deconvolution import DeconvolutionDataModule
from zoo.errors import PhysicsError, TrainingDataError
from zoo.loss.autoencoder import surrogate_loss
from zoo.loss.covariance import WeightedSquaredNorm
from zoo.model.autoencoder import KINDS, Autoencoder
from zoo.model.closed_form import Affine, LinearProblem
from zoo.model.closed_form_autoencoder import (
    Halves,
    observations_to_observations,
    parameters_to_parameters,
)
from zoo.net.mlp import MLP
from zoo.physics.deconvolution import Deconvolution
from zoo.physics.heat import Heat
from zoo.runtime import quiet_trainer

N, WEIGHT = 12, 20.0
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


def _drawn(n_train: int = 40) -> tuple[Deconvolution, DeconvolutionDataModule]:
    operator = Deconvolution(N)
    return operator, DeconvolutionDataModule(operator, n_train=n_train, n_val=5, n_test=20)


def _closed(kind: str, problem: LinearProblem, u: Tensor, y: Tensor) -> Halves:
    if kind in ("pop", "mc_pop"):
        return parameters_to_parameters(problem, u, y, WEIGHT if kind == "mc_pop" else 0.0)
    net = {
        "opo": partial(problem.naive, u, y),
        "mc_opo": partial(problem.model_constrained, u, y, WEIGHT),
        "taen": partial(problem.tnet, y, WEIGHT, torch.zeros(N, dtype=y.dtype)),
    }[kind]()
    return observations_to_observations(problem, net, y, kind != "opo")


def _affine(half: Affine) -> MLP:
    net = MLP(N, N).double()
    net.layers[0].load_state_dict(half._asdict())
    return net


@pytest.mark.parametrize("kind", ["pop", "mc_pop", "opo", "mc_opo", "taen"])
def test_closed_forms_are_stationary_points_of_the_losses(kind: str) -> None:
    operator, data = _drawn()
    train = data.samples("train")
    halves = _closed(kind, LinearProblem(operator.matrix), train.truth, train.data)
    nets = (_affine(halves.net), _affine(halves.surrogate))
    model = Autoencoder(*nets, operator, torch.optim.Adam, kind=kind, weight=WEIGHT).double()
    batch = next(iter(data.train_dataloader()))
    for loss, half in ((model.inverse_loss, model.net), (model.surrogate_loss, model.surrogate)):
        gradients = torch.autograd.grad(loss(batch), list(half.parameters()))
        assert max(float(g.abs().max()) for g in gradients) <= 1e-8


@pytest.mark.parametrize("kind", ["mc_opo", "taen"])
def test_the_surrogate_of_a_constrained_autoencoder_is_the_operator(kind: str) -> None:
    """On what the encoder gives, which is all that the decoder is asked."""
    operator, data = _drawn()
    train = data.samples("train")
    halves = _closed(kind, LinearProblem(operator.matrix), train.truth, train.data)
    estimate = halves.net(data.samples("test").data)
    torch.testing.assert_close(halves.surrogate(estimate), operator(estimate), rtol=0, atol=1e-8)


class _Spy(Autoencoder):
    """Keeps both halves as they are after each step."""

    def on_train_batch_end(self, *_: object) -> None:
        halves = (self.net, self.surrogate)
        seen = tuple(nn.utils.parameters_to_vector(h.parameters()).clone() for h in halves)
        self.seen = [*getattr(self, "seen", []), seen]


_OPTIMIZERS = {"adam": torch.optim.Adam, "lbfgs": partial(torch.optim.LBFGS, max_iter=2)}


@pytest.mark.parametrize("optimizer", _OPTIMIZERS.values(), ids=_OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_half_rests_while_the_other_learns(kind: str, optimizer) -> None:
    operator = Heat(4, n_modes=3, n_sensors=2)
    data = CoefficientsDataModule(operator, n_train=3, n_val=2, n_test=2)
    n_out = 16 if kind.endswith("full") else 2
    model = _Spy(
        MLP(2, 3, (4,)), MLP(3, n_out, (4,)), operator, optimizer, kind=kind, n_first_steps=3
    )
    trainer = quiet_trainer(6)
    trainer.fit(model, data)
    encoder = 1 if KINDS[kind].surrogate_first else 0
    first, second = [s[encoder] for s in model.seen], [s[1 - encoder] for s in model.seen]
    assert not torch.equal(first[0], first[2])
    assert torch.equal(first[2], first[5])
    assert torch.equal(second[0], second[2])
    assert not torch.equal(second[2], second[5])
    logged = trainer.test(model, data, verbose=False)[0]
    total = logged["test/relative_error"] + logged["test/forward_error"]
    assert logged["test/total_error"] == pytest.approx(total)


def test_unknown_kinds_and_missing_states_are_named() -> None:
    halves = (MLP(8, 8), MLP(8, 8))
    with pytest.raises(ValueError, match=r"kind must be one of .*'taen'.*got 'ae'"):
        Autoencoder(*halves, Deconvolution(8), torch.optim.Adam, kind="ae")
    with pytest.raises(PhysicsError, match=r"method state\(u\), got Deconvolution.*kind=taen"):
        Autoencoder(*halves, Deconvolution(8), torch.optim.Adam, kind="taen_full")


def test_a_surrogate_of_another_shape_is_named() -> None:
    with pytest.raises(TrainingDataError, match=r"Expected \[2, 9\].*set surrogate.n_out=9"):
        surrogate_loss(torch.zeros(2, 8), torch.zeros(2, 9), WeightedSquaredNorm())
