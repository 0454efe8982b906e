"""The generator of crystals: the same sample everywhere, and what the samples are."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from tests.ranks import run_ranks
from zoo.data.crystals import SIZES, CbedSize, make_sample, scan_positions_A, size_named
from zoo.errors import UserError
from zoo.physics.multislice import ThinObject

_TINY = SIZES["tiny"]


def _digest(rank: int, index: int) -> str:
    sample = make_sample(_TINY, 0, index)
    data = sample.cbed.numpy().tobytes() + sample.potential.numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    sample = make_sample(_TINY, 0, 5)
    # Others made in between change nothing.
    make_sample(_TINY, 0, 6)
    again = make_sample(_TINY, 0, 5)
    assert torch.equal(sample.cbed, again.cbed)
    assert torch.equal(sample.potential, again.potential)
    for other in (make_sample(_TINY, 0, 6), make_sample(_TINY, 1, 5)):
        assert (sample.potential - other.potential).norm() > 0.1 * sample.potential.norm()


def test_every_process_makes_the_same_sample() -> None:
    expected = _digest(0, 3)
    assert run_ranks(2, _digest, 3) == [expected, expected]


def test_shapes_types_and_ranges() -> None:
    sample = make_sample(_TINY, 0, 1)
    assert sample.cbed.shape == _TINY.cbed_shape == (64, 32, 32)
    assert sample.potential.shape == _TINY.potential_shape == (1, 32, 32)
    assert sample.cbed.dtype == sample.potential.dtype == torch.float32
    assert sample.cbed.min() >= 0.0
    # The band limit takes a little, and its edges ring.
    torch.testing.assert_close(sample.cbed.sum((1, 2)), torch.ones(64), rtol=0, atol=0.03)


def test_patterns_are_those_of_the_potential() -> None:
    # One layer is a thin object, so that the projected potential says it all.
    size = replace(_TINY, n_slices=1, min_slices=1)
    sample = make_sample(size, 0, 2)
    thin = ThinObject(size.microscope, scan_positions_A(size))(sample.potential[None])[0]
    torch.testing.assert_close(sample.cbed, thin, rtol=1e-4, atol=1e-7)
    assert (sample.cbed.std(0) > 1e-4).any(), "the scan sees the same everywhere"


def test_crystals_differ_as_much_as_the_reference_experiment_s() -> None:
    potentials = torch.stack([make_sample(_TINY, 0, index).potential for index in range(24)])
    rest = potentials - potentials.mean(0)
    # Predicting the mean leaves 0.87 of the norm there.
    assert 0.8 < float(rest.norm() / potentials.norm()) < 0.95


def test_thinner_slabs_have_empty_slices_below() -> None:
    size = replace(_TINY, n_slices=6, min_slices=1)
    totals = [float(make_sample(size, 0, index).potential.sum()) for index in range(12)]
    assert max(totals) > 3 * min(totals) > 0


def test_noise_has_the_dose() -> None:
    noisy = replace(_TINY, electrons_per_pattern=500.0)
    sample, ideal = make_sample(noisy, 0, 4), make_sample(_TINY, 0, 4)
    counts = sample.cbed * 500.0
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    assert torch.equal(sample.potential, ideal.potential)
    # 64 patterns of 500 electrons: the mean's standard error is 2.8.
    assert float(counts.sum((1, 2)).mean()) == pytest.approx(500.0, abs=12.0)
    assert torch.equal(sample.cbed, make_sample(noisy, 0, 4).cbed)


def test_paper_size_has_the_paper_s_shapes() -> None:
    paper = SIZES["paper"]
    assert (paper.cbed_shape, paper.potential_shape) == ((1024, 512, 512), (1, 512, 512))
    assert paper.n_train + paper.n_val + paper.n_test == 67000
    for size in SIZES.values():
        assert isinstance(size, CbedSize)
        assert size.samples_per_shard >= 1


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UserError, match=r"no size 'huge'. Expected one of tiny, small, medium"):
        size_named("huge")
    with pytest.raises(
        UserError, match=r"min_slices does not fit. Expected 1 to n_slices=4, got 5"
    ):
        replace(_TINY, min_slices=5)
