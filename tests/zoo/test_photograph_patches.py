"""Regularised super-resolution of patches: operator as a matrix, the chain of layers, the claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.claim import photograph_patches, photographs, regularization
from zoo.errors import PhysicsError
from zoo.net.espcn import ESPCN
from zoo.physics.bicubic import BicubicDownsampling
from zoo.physics.dense import Dense
from zoo.physics.heat import Heat


@pytest.mark.parametrize("flat", [False, True])
def test_a_matrix_does_what_its_operator_does(flat: bool) -> None:
    operator = BicubicDownsampling((1, 8, 8), 2)
    dense = Dense(operator, flat)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    y = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    shaped = (lambda t: t.flatten(1)) if flat else (lambda t: t)
    torch.testing.assert_close(dense(shaped(x)), shaped(operator(x)))
    left = (dense(shaped(x)) * shaped(y)).sum()
    torch.testing.assert_close(left, (shaped(x) * dense.adjoint(shaped(y))).sum())


def test_an_operator_without_a_matrix_is_named() -> None:
    with pytest.raises(PhysicsError, match="Heat has no real matrix"):
        Dense(Heat(4, n_modes=2, n_sensors=2))


def test_shapes_of_espcn() -> None:
    assert ESPCN((4, 3), scale=3)(torch.rand(2, 1, 5, 7)).shape == (2, 1, 15, 21)


@pytest.mark.slow
def test_every_term_is_measured_for_both_nets(
    photographs_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "_PATH", photographs_path)
    monkeypatch.setattr(regularization, "_TIMED_STEPS", 1)
    monkeypatch.setattr(photograph_patches, "_N_TRAIN", 2)
    problems = [
        (labels, photograph_patches._problem(labels["net"], n_steps=2))
        for labels in photograph_patches._COLUMNS.values()
    ]
    names = tuple(regularization.terms())
    measured = regularization.measure_all(problems, names, [0, 1], lambda _: None)
    measured["cost_convolutional"] = measured["cost"]
    measured["bicubic"] = photograph_patches._bicubic(problems[1][1])
    assert len(measured["results"]) == 2 * len(names)
    assert all(len(result["psnr"]) == 2 for result in measured["results"])
    rows = photograph_patches.table(measured)
    assert [row[0] for row in rows.rows] == [*names, "bicubic, no net"]
    assert len(photograph_patches.checks(measured)) == 2
    assert photograph_patches.plot(measured).axes
