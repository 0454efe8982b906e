from __future__ import annotations

import doctest
import random

import numpy as np
import pytest

from lightning_gradsched.core import cost as cost_module
from lightning_gradsched.core.cost import AlphaBeta, Interpolated, fit_all_reduce
from lightning_gradsched.core.profile import NetworkProfile, Sample
from lightning_gradsched.errors import ProfileError

SIZES = [2**k for k in range(10, 25, 2)]


def measured(*points: tuple[int, float]) -> NetworkProfile:
    samples = tuple(Sample("all_reduce", nbytes, seconds) for nbytes, seconds in points)
    return NetworkProfile("gloo", 2, 1, 2, samples)


def test_doctests() -> None:
    assert doctest.testmod(cost_module).failed == 0


def test_fit_recovers_alpha_and_beta_under_noise_and_outliers() -> None:
    rng = random.Random(0)
    true = AlphaBeta(alpha_s=2e-4, beta_s_per_byte=1e-9)
    points = [(n, true.all_reduce_s(n) * rng.uniform(0.97, 1.03)) for n in SIZES for _ in range(5)]
    points += [(n, 50 * true.all_reduce_s(n)) for n in SIZES]  # one straggler at each size
    fit = fit_all_reduce(measured(*points))
    assert fit.is_good
    assert isinstance(fit.model, AlphaBeta)
    assert fit.model.alpha_s == pytest.approx(2e-4, rel=0.05)
    assert fit.model.beta_s_per_byte == pytest.approx(1e-9, rel=0.05)
    assert fit.worst_error < 0.05


@pytest.mark.parametrize("true", [AlphaBeta(0.0, 1e-9), AlphaBeta(1e-3, 0.0)])
def test_coefficients_never_go_below_zero(true: AlphaBeta) -> None:
    rng = random.Random(1)
    points = [(n, true.all_reduce_s(n) * rng.uniform(0.9, 1.1)) for n in SIZES]
    model = fit_all_reduce(measured(*points)).model
    assert isinstance(model, AlphaBeta)
    assert min(model.alpha_s, model.beta_s_per_byte) >= 0


def test_a_network_that_is_no_straight_line_is_interpolated_and_never_falls() -> None:
    points = [(1000, 1e-3), (10_000, 9e-4), (100_000, 5e-2), (1_000_000, 6e-2)]
    fit = fit_all_reduce(measured(*points))
    assert not fit.is_good
    assert isinstance(fit.model, Interpolated)
    assert fit.model.all_reduce_s(100_000.0) == 5e-2
    sizes = np.linspace(0, 5e6, 200)
    assert (np.diff(fit.model.all_reduce_s(sizes)) >= 0).all()
    assert fit.model.all_reduce_s(2_000_000.0) > 6e-2


def line_with(odd: dict[int, float]) -> NetworkProfile:
    true = AlphaBeta(alpha_s=3e-4, beta_s_per_byte=1e-8)
    return measured(*[(n, odd.get(n, 1.0) * true.all_reduce_s(n)) for n in SIZES])


@pytest.mark.parametrize("odd", SIZES[:-1])
@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_one_odd_size_is_passed_over_and_named(odd: int, factor: float) -> None:
    fit = fit_all_reduce(line_with({odd: factor}))
    assert fit.is_good
    assert fit.odd_nbytes == (odd,)
    assert fit.worst_nbytes == odd
    assert fit.worst_error == pytest.approx(abs(1 / factor - 1), rel=1e-6)
    assert isinstance(fit.model, AlphaBeta)
    assert fit.model.alpha_s == pytest.approx(3e-4)
    assert fit.model.beta_s_per_byte == pytest.approx(1e-8)


@pytest.mark.parametrize("odd", [SIZES[-1:], SIZES[2:4]])
def test_an_odd_largest_size_or_two_odd_ones_make_no_good_fit(odd: list[int]) -> None:
    fit = fit_all_reduce(line_with(dict.fromkeys(odd, 2.0)))
    assert not fit.is_good
    assert isinstance(fit.model, Interpolated)
    assert set(fit.odd_nbytes) == set(odd)


def test_what_a_shaped_link_lets_through_free_does_not_bend_the_line() -> None:
    """Messages up to 30 KB see no serialisation: latency alone."""
    free_nbytes = 30_000
    points = [(n, 2e-3 + 9e-9 * max(0, n - free_nbytes)) for n in SIZES]
    fit = fit_all_reduce(measured(*points))
    assert fit.is_good
    assert fit.model.all_reduce_s(25e6) == pytest.approx(2e-3 + 9e-9 * 25e6, rel=0.02)


def test_one_odd_size_does_not_lift_the_interpolation_for_long() -> None:
    points = [(10, 1.0), (100, 8.0), (1000, 2.0), (10_000, 32.0), (100_000, 33.0)]
    model = fit_all_reduce(measured(*points)).model
    assert model == Interpolated((10.0, 100.0, 1000.0, 10_000.0, 100_000.0), (1, 4, 4, 32, 33))


def test_one_size_is_too_few() -> None:
    with pytest.raises(ProfileError, match="two sizes or more"):
        fit_all_reduce(measured((1024, 1e-3), (1024, 2e-3)))


def test_a_latency_that_hides_behind_the_transfer_is_told_from_one_that_adds() -> None:
    true = AlphaBeta(alpha_s=2e-4, beta_s_per_byte=8.4e-9, hides=True)
    sizes = [2 ** (10 + 2 * k) for k in range(8)]
    noise = (1.02, 0.97, 1.01, 0.99, 1.02, 0.98, 1.01, 1.0)
    points = [
        (size, factor * true.all_reduce_s(size)) for size, factor in zip(sizes, noise, strict=True)
    ]
    fit = fit_all_reduce(measured(*points))
    assert isinstance(fit.model, AlphaBeta)
    assert fit.model.hides
    assert fit.model.alpha_s == pytest.approx(true.alpha_s, rel=0.03)
    assert fit.model.beta_s_per_byte == pytest.approx(true.beta_s_per_byte, rel=0.03)
    # A line bends up to both ends: at the kink, and at the largest, it would be off by far more.
    assert fit.worst_error < 0.05
