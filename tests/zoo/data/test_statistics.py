"""Statistics agree with numpy's on everything at once, also where float32 could not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoo.data.hdf5 import HDF5Samples, open_samples
from zoo.data.schema import Field
from zoo.data.shards import ShardWriter, generate_shards
from zoo.data.statistics import build_statistics, load_statistics, save_statistics
from zoo.errors import DataFileError


def test_statistics_by_channel(samples: HDF5Samples, tmp_path: Path) -> None:
    statistics = build_statistics(samples)
    image = np.stack([samples[i]["image"].numpy() for i in range(len(samples))]).astype(np.float64)
    values = image.swapaxes(0, 1).reshape(4, -1)
    found = statistics["image"]
    assert found.n_values == values.shape[1]
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(axis=1), rtol=1e-12)
    assert found.minimum == tuple(values.min(axis=1))
    assert found.maximum == tuple(values.max(axis=1))
    np.testing.assert_allclose(found.percentiles["50"], np.percentile(values, 50, axis=1), atol=0.1)
    save_statistics(tmp_path / "statistics.json", statistics)
    assert load_statistics(tmp_path / "statistics.json") == statistics


def test_small_deviations_of_large_values_survive(tmp_path: Path) -> None:
    """As sea-level pressure: mean square minus squared mean is negative in float32."""
    generator = np.random.default_rng(0)
    data = (100782 + 0.5 * generator.standard_normal((6, 50, 60))).astype(np.float32)
    writer = ShardWriter(tmp_path, {"psl": Field("psl", (50, 60), "float32")}, 6, 2)
    generate_shards(writer, lambda index: {"psl": data[index]})
    dataset = open_samples(tmp_path)
    found = build_statistics(dataset)["psl"]
    dataset.close()
    np.testing.assert_allclose(found.std[0], data.astype(np.float64).std(), rtol=1e-9)


def test_foreign_statistics_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"image": {"mean": [1]}}')
    with pytest.raises(DataFileError, match=r"no usable statistics at \S+x\.json"):
        load_statistics(tmp_path / "x.json")
