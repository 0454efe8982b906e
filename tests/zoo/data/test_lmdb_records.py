"""Stores as `nlaanait/stemdl` writes them: read as one index, converted without a bit changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data import convert
from zoo.data.hdf5 import open_samples
from zoo.data.lmdb_records import LMDBRecords
from zoo.data.loader import Loader
from zoo.data.sampler import ExactBatches
from zoo.errors import DataFileError, SchemaMismatchError

lmdb = pytest.importorskip("lmdb")


def sample(index: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(index)
    cbed, potential = generator.random((4, 6, 6)), generator.random((1, 6, 6))
    return cbed.astype(np.float16), potential.astype(np.float16)


def write_store(path: Path, indices: range, n_planes: int = 4) -> Path:
    """As `numpy_to_lmdb` of stemdl's io_utils_torch.py does, with its seventh header."""
    with lmdb.open(str(path), map_size=1 << 20) as store, store.begin(write=True) as transaction:
        for place, index in enumerate(indices):
            cbed, potential = sample(index)
            transaction.put(f"input_{place}".encode(), cbed[:n_planes].tobytes())
            transaction.put(f"output_{place}".encode(), potential.tobytes())
        headers = {
            "input_dtype": b"<f2",
            "input_shape": np.array((n_planes, 6, 6)).tobytes(),
            "output_shape": np.array((1, 6, 6)).tobytes(),
            "output_dtype": b"<f2",
            "output_name": b"output_",
            "input_name": b"input_",
            "header_entries": bytes(6),
        }
        for key, value in headers.items():
            transaction.put(key.encode(), value)
    return path


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    parts = (range(3), range(3, 8))
    return [write_store(tmp_path / f"batch_train_{i}.db", part) for i, part in enumerate(parts)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_stores_are_one_index(stores: list[Path], num_workers: int) -> None:
    records = LMDBRecords(stores)
    assert len(records) == 8
    loader = Loader(records, ExactBatches(8, 3), num_workers=num_workers)
    for batch in loader:
        for row, index in enumerate(batch["index"].tolist()):
            cbed, potential = sample(index)
            assert torch.equal(batch["input"][row], torch.from_numpy(cbed))
            assert torch.equal(batch["output"][row], torch.from_numpy(potential))
    loader.close()


def test_converted_without_a_bit_changed(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    convert.main([*map(str, stores), str(folder), "--samples-per-shard", "3"])
    assert "8 samples in 3 shards" in capsys.readouterr().out
    dataset = open_samples(folder)
    assert dataset.fields["input"].dataset == "cbed"
    for index in range(8):
        cbed, potential = sample(index)
        assert np.array_equal(dataset[index]["input"].numpy(), cbed)
        assert np.array_equal(dataset[index]["output"].numpy(), potential)
    dataset.close()


def test_damaged_and_foreign_stores_are_named(stores: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"nowhere\.db cannot be opened"):
        LMDBRecords([tmp_path / "nowhere.db"])
    with lmdb.open(str(tmp_path / "empty.db"), map_size=1 << 20):
        pass
    with pytest.raises(DataFileError, match=r"empty\.db is of another layout"):
        LMDBRecords([tmp_path / "empty.db"])
    other = write_store(tmp_path / "other.db", range(2), n_planes=2)
    with pytest.raises(SchemaMismatchError, match=r"other\.db is of another schema"):
        LMDBRecords([stores[0], other])
    with lmdb.open(str(stores[0]), map_size=1 << 20) as store, store.begin(write=True) as t:
        t.put(b"input_1", b"short")
    records = LMDBRecords(stores)
    with pytest.raises(DataFileError, match="record input_1 expected 288 bytes, got 5 bytes"):
        records[1]
    records.close()
