"""What every forward operator must hold: one test for all, on the CPU and on CUDA where it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo.errors import PhysicsError
from zoo.physics.bicubic import BicubicDownsampling
from zoo.physics.blur import Blur
from zoo.physics.burgers import Burgers
from zoo.physics.compressed_sensing import CompressedSensing
from zoo.physics.deconvolution import Deconvolution
from zoo.physics.dense import Dense
from zoo.physics.electron import Microscope
from zoo.physics.heat import Heat
from zoo.physics.multislice import Multislice, ThinObject
from zoo.physics.navier_stokes import NavierStokes
from zoo.physics.operator import Operator, Space, adjoint, inner, jvp, norm, vjp
from zoo.physics.ptychography import Diffraction, FarField
from zoo.physics.smoothing import Smoothing

# Slow electrons, which a potential of about 1 V already turns by a sizeable phase.
_MICROSCOPE = Microscope(8, pixel_A=1.0, energy_eV=20.0, semiangle_rad=0.6)
_POSITIONS_A = torch.tensor([[0.0, 0.0], [3.1, 4.7]])
_PROBE = Space((6, 6), is_complex=True).random(1, seed=4)[0]
_POSITIONS_PX = torch.tensor([[0.0, 0.0], [2.3, 1.6], [3.0, 4.0]])

# name -> a small operator; a few hundred numbers, or else the gradient check takes long.
OPERATORS: dict[str, Callable[[], Operator]] = {
    "bicubic": lambda: BicubicDownsampling((2, 12, 8), scale=2),
    "multislice": lambda: Multislice(_MICROSCOPE, _POSITIONS_A, 3, slice_thickness_A=2.0),
    "thin_object": lambda: ThinObject(_MICROSCOPE, _POSITIONS_A),
    "far_field": lambda: FarField(_PROBE, _POSITIONS_PX, (9, 10)),
    "diffraction": lambda: Diffraction(_PROBE, _POSITIONS_PX, (9, 10)),
    "compressed_sensing": lambda: CompressedSensing(12, 32),
    "deconvolution": lambda: Deconvolution(32),
    "heat": lambda: Heat(6, n_modes=5, n_sensors=4),
    "smoothing": lambda: Smoothing(32),
    "blur": lambda: Blur(8),
    "burgers": lambda: Burgers(16, n_modes=4, n_sensors=5, n_steps=3),
    "dense": lambda: Dense(BicubicDownsampling((1, 8, 8), scale=2), flat=True),
    "navier_stokes": lambda: NavierStokes(8, n_modes=4, n_sensors=5, time=1.0, n_steps=2),
}
_DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

every_operator = pytest.mark.parametrize("name", OPERATORS)
every_device = pytest.mark.parametrize("device", _DEVICES)


def _operator(name: str, device: str = "cpu") -> Operator:
    return OPERATORS[name]().to(device)


def _relative_gap(left: Tensor, right: Tensor, scale: Tensor) -> float:
    return float(((left - right).abs() / scale).max())


@every_device
@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adjointness(name: str, device: str, dtype: torch.dtype) -> None:
    operator = _operator(name, device)
    x, v = (operator.domain.random(3, dtype, seed, device) for seed in (0, 1))
    y = operator.codomain.random(3, dtype, 2, device)
    along, back = jvp(operator, x, v), vjp(operator, x, y)
    scale = inner(along, along).sqrt() * inner(y, y).sqrt()
    assert _relative_gap(inner(along, y), inner(v, back), scale) <= 1e-5
    if operator.is_linear:
        # The closed form where there is one; it must be the same map, not only adjoint on average.
        torch.testing.assert_close(adjoint(operator, y), back, rtol=1e-4, atol=1e-5)


@every_device
@every_operator
def test_linearity_is_as_claimed(name: str, device: str) -> None:
    operator = _operator(name, device)
    u, v = (operator.domain.random(2, torch.float64, seed, device) for seed in (0, 1))
    factor = 0.5 - 0.3j if operator.domain.is_complex and operator.codomain.is_complex else -1.7
    apart, summed = operator(u) + factor * operator(v), operator(u + factor * v)
    assert torch.allclose(summed, apart, rtol=1e-9, atol=1e-9) == operator.is_linear


@every_operator
def test_gradient(name: str) -> None:
    operator = _operator(name)
    x = operator.domain.random(1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(operator, x, eps=1e-5, atol=1e-8, rtol=1e-5, fast_mode=True)


@every_operator
def test_shapes_types_and_independence_of_the_batch(name: str) -> None:
    operator = _operator(name)
    x = operator.domain.random(3, torch.float64)
    y = operator(x)
    operator.codomain.require("y", y)
    assert y.abs().dtype == torch.float64
    torch.testing.assert_close(operator(x[1:2]), y[1:2])
    assert operator(x.to(torch.complex64 if x.is_complex() else torch.float32)).abs().dtype == (
        torch.float32
    )


@every_operator
def test_norm_bounds_the_jacobian_and_is_nearly_reached(name: str) -> None:
    operator = _operator(name)
    at = operator.domain.random(1, torch.float64)
    largest = norm(operator, at, n_iterations=80)
    v = operator.domain.random(1, torch.float64, seed=3)
    assert float(jvp(operator, at, v).norm() / v.norm()) <= largest * (1 + 1e-6)
    assert norm(operator, at, n_iterations=160, seed=5) == pytest.approx(largest, rel=0.05)


@every_operator
def test_wrong_shape_is_named(name: str) -> None:
    operator = _operator(name)
    wrong = torch.zeros(1, *operator.domain.shape[:-1], operator.domain.shape[-1] + 1)
    with pytest.raises(PhysicsError, match=r"does not fit the operator. Expected a (real|complex)"):
        operator(wrong.to(torch.complex64) if operator.domain.is_complex else wrong)


class _Square:
    domain = codomain = Space((3,))
    is_linear = False

    def __call__(self, x: Tensor) -> Tensor:
        return x**2


def test_what_needs_linearity_says_so() -> None:
    square = _Square()
    with pytest.raises(PhysicsError, match=r"_Square is not linear.*take `vjp\(operator, x, y\)`"):
        adjoint(square, torch.ones(1, 3))
    with pytest.raises(PhysicsError, match=r"_Square is not linear.*pass at=x"):
        norm(square)
    assert norm(square, torch.tensor([[1.0, -3.0, 2.0]])) == pytest.approx(6.0)


def test_vjp_can_be_differentiated() -> None:
    x, y = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3).requires_grad_()
    vjp(_Square(), x, y).sum().backward()
    assert y.grad.tolist() == [[2.0, 4.0, 6.0]]
    with torch.inference_mode():
        assert vjp(_Square(), x, torch.ones(1, 3)).tolist() == [[2.0, 4.0, 6.0]]
