"""The ways to bring samples from files to a training step that are measured side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.hdf5 import open_samples
from zoo.data.loader import Loader
from zoo.data.sampler import EpochBatches
from zoo.data.schema import Field
from zoo.data.shards import ShardWriter, generate_shards


class Case(NamedTuple):
    """Samples of one kind: `field`, how many, how many a file, and how many a batch."""

    field: Field
    n_samples: int
    samples_per_shard: int
    batch_size: int

    @property
    def nbytes(self) -> int:
        return self.n_samples * self.field.nbytes


CASES = {
    "climate": Case(Field("climate/data", (768, 1152, 16), "float32", "HWC"), 8, 1, 1),
    "diffraction": Case(Field("cbed", (512, 512), "float16", "HW"), 512, 64, 16),
}
TINY_CASES = {
    "climate": Case(Field("climate/data", (24, 36, 16), "float32", "HWC"), 4, 1, 1),
    "diffraction": Case(Field("cbed", (16, 16), "float16", "HW"), 16, 8, 4),
}


def write_files(folder: Path, case: Case) -> None:
    """The same samples in each format, one after the other, so that all are page-cached alike."""
    data = _Source(case)
    writer = ShardWriter(folder / "hdf5", {"x": case.field}, case.n_samples, case.samples_per_shard)
    generate_shards(writer, lambda index: {"x": data[index]})
    (folder / "npy").mkdir()
    for index in range(case.n_samples):
        np.save(folder / "npy" / f"{index}.npy", data[index])
    for write in (_write_zarr, _write_webdataset):
        try:
            write(folder, case, data)
        except ImportError as error:
            print(f"left out, not installed: {error.name}")


class _Source:
    def __init__(self, case: Case) -> None:
        self.case = case

    def __getitem__(self, index: int) -> np.ndarray:
        generator = np.random.default_rng(index)
        return generator.random(self.case.field.shape, np.float32).astype(self.case.field.dtype)


def _write_zarr(folder: Path, case: Case, data: _Source) -> None:
    import zarr

    array = zarr.create_array(
        folder / "zarr",
        shape=(case.n_samples, *case.field.shape),
        chunks=(1, *case.field.shape),
        dtype=case.field.dtype,
        compressors=None,
    )
    for index in range(case.n_samples):
        array[index] = data[index]


def _write_webdataset(folder: Path, case: Case, data: _Source) -> None:
    import webdataset

    # One tar a worker at least: a worker reads whole tars.
    n_tars = 4
    (folder / "tar").mkdir()
    for tar in range(n_tars):
        with webdataset.TarWriter(str(folder / "tar" / f"{tar}.tar")) as writer:
            for index in range(tar, case.n_samples, n_tars):
                writer.write({"__key__": f"{index:06d}", "npy": data[index]})


class NumpyFiles(Dataset):
    def __init__(self, folder: Path, case: Case) -> None:
        self.folder, self.case = folder / "npy", case

    def __len__(self) -> int:
        return self.case.n_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.folder / f"{index}.npy"))


class PlainH5py(Dataset):
    """`file[dataset][i]`, files opened once a process."""

    driver: str | None = None

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder, self.case = folder / "hdf5", case
        self.files: dict[int, h5py.Dataset] = {}

    def __len__(self) -> int:
        return self.case.n_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        shard, row = divmod(index, self.case.samples_per_shard)
        if shard not in self.files:
            file = h5py.File(self.folder / f"shard-{shard:05d}.h5", "r", locking=False)
            self.files[shard] = file[self.case.field.dataset]
        return torch.from_numpy(self.files[shard][row])


class CoreDriver(PlainH5py):
    """As the climate code of Kurth et al. 2018 opened them: whole into memory, for each sample."""

    def __getitem__(self, index: int) -> torch.Tensor:
        shard, row = divmod(index, self.case.samples_per_shard)
        path = self.folder / f"shard-{shard:05d}.h5"
        with h5py.File(path, "r", driver="core", backing_store=False, locking=False) as file:
            return torch.from_numpy(file[self.case.field.dataset][row])


class Zarr(Dataset):
    def __init__(self, folder: Path, case: Case) -> None:
        self.folder, self.case, self.array = folder / "zarr", case, None

    def __len__(self) -> int:
        return self.case.n_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.array is None:
            import zarr

            self.array = zarr.open_array(self.folder, mode="r")
        return torch.from_numpy(self.array[index])


MAP_STYLE: dict[str, type[Dataset]] = {
    "np.load": NumpyFiles,
    "h5py": PlainH5py,
    "h5py core": CoreDriver,
    "zarr": Zarr,
}


class Engine:
    """This engine."""

    def __init__(self, folder: Path, case: Case, num_workers: int) -> None:
        samples = open_samples(folder / "hdf5")
        batches = EpochBatches(len(samples), case.batch_size, seed=0)
        self.loader = Loader(samples, batches, num_workers=num_workers, prefetch=2)

    def epoch(self) -> Iterator[Any]:
        return iter(self.loader)

    def close(self) -> None:
        self.loader.close()


class TorchLoader:
    """A rival in torch's DataLoader, as its users run it: shuffled, workers that last."""

    def __init__(self, dataset: Any, num_workers: int, batch_size: int | None) -> None:
        shuffled = batch_size is not None
        workers = {"persistent_workers": True, "multiprocessing_context": "fork"}
        self.loader: DataLoader[Any] | None = DataLoader(
            dataset,
            batch_size,
            num_workers=num_workers,
            **({"shuffle": True} if shuffled else {}),
            **(workers if num_workers else {}),
        )

    def epoch(self) -> Iterator[Any]:
        return iter(self.loader)

    def close(self) -> None:
        self.loader = None


class ReadDirect:
    """The limit: `Dataset.read_direct` into one buffer, again and again, in this process."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.case = case
        paths = sorted((folder / "hdf5").glob("*.h5"))
        self.files = [h5py.File(path, "r", locking=False) for path in paths]
        self.datasets = [file[case.field.dataset] for file in self.files]
        self.buffer = np.empty((case.batch_size, *case.field.shape), case.field.dtype)

    def epoch(self) -> Iterator[Any]:
        for first in range(0, self.case.n_samples, self.case.batch_size):
            for place in range(self.case.batch_size):
                shard, row = divmod(first + place, self.case.samples_per_shard)
                self.datasets[shard].read_direct(self.buffer[place], source_sel=np.s_[row])
            yield self.buffer

    def close(self) -> None:
        for file in self.files:
            file.close()


def rivals(folder: Path, case: Case, num_workers: int) -> dict[str, Any]:
    """All that can be run here, by name; each has `epoch` and `close`."""
    every: dict[str, Any] = {
        "limit": ReadDirect(folder, case),
        "engine": Engine(folder, case, num_workers),
    }
    for name, dataset in MAP_STYLE.items():
        if name == "zarr" and not (folder / "zarr").exists():
            continue
        every[name] = TorchLoader(dataset(folder, case), num_workers, case.batch_size)
    if (folder / "tar").exists():
        every["webdataset"] = _webdataset(folder, case, num_workers)
    return every


def _webdataset(folder: Path, case: Case, num_workers: int) -> TorchLoader:
    import webdataset

    tars = sorted(map(str, (folder / "tar").glob("*.tar")))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), nodesplitter=lambda urls: urls)
    dataset = dataset.decode().to_tuple("npy").batched(case.batch_size)
    return TorchLoader(dataset, num_workers, None)
