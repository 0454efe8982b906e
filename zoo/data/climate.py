"""Snapshots of a climate model and their masks: generated, or files of CAM5's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from zoo.data.climate_batch import ClimateBatch
from zoo.data.climate_channels import CHANNELS, CLASS_NAMES
from zoo.data.climate_files import describe_files
from zoo.data.climate_grid import regular_grid
from zoo.data.climate_normalization import Normalization, normalization
from zoo.data.climate_shards import ClimateShards, climate_schema, climate_size
from zoo.data.climate_statistics import (
    ChannelTable,
    deepcam_table,
    read_statistics_file,
    table_of,
)
from zoo.data.hdf5 import HDF5Samples
from zoo.data.hdf5_shards import SPLITS, HDF5DataModule
from zoo.data.manifest import Manifest, cached_manifest, matching, read_manifest
from zoo.data.sampler import split_blocks
from zoo.data.schema import Schema
from zoo.data.statistics import build_statistics
from zoo.data.verify import without_bad
from zoo.errors import ChannelError, CheckpointError, SchemaMismatchError, UserError

SplitBy = Literal["time_blocks", "random"]
_STEPS_A_DAY = 8
_LOOKED_AT = 128


class ClimateSamples(HDF5Samples):
    """A split as a map-style data set of `ClimateBatch`es without the batch dimension."""

    normalization: Normalization | None = None

    def __getitem__(self, index: int) -> ClimateBatch:
        return to_batch(super().__getitem__(index) | {"index": index}, self.normalization)


class ClimateDataModule(HDF5DataModule):
    """Batches are `ClimateBatch`es; what is read and how, `HDF5DataModule` says.

    With a `size`, global rank 0 generates the set where it is missing. Without one `path` holds
    files of CAM5's layout (S6, DeepCAM): `climate/data` [H, W, C] and `climate/labels_0`,
    `labels_1` or `labels`, [H, W] or [K, H, W]; several snapshots in a file are an axis in front.
    Channels come from `/climate/channels` where a file has it, else they are CAM5's sixteen.

    [Note: leaks between splits] Snapshots 3 hours apart are nearly the same picture. Drawn one by
    one (`split_by=random`, which is how S6 and DeepCAM split), almost every validation snapshot has
    a neighbour in training, and its score says how well neighbours are remembered. `time_blocks`
    keeps blocks of `split_block` consecutive snapshots in one split.

    The scaling is computed once, in `setup`, and goes with the checkpoint (`state_dict`): what is
    trained on one table is never evaluated with another.

    Args:
        path: folder of the files.
        size: what to generate, a name in `zoo.data.climate_shards.SIZES`; None takes what is there.
        channels: which to read, by name and in this order; all by default.
        labels: dataset under `climate`: `labels_0` (TMQ over 24), `labels_1` (over 21), `labels`.
        label_plane: which of K planes.
        normalization: of all channels (`zoo.data.climate_normalization.normalization`).
        normalization_of: another one by channel.
        statistics: `deepcam` (the table that comes with the zoo), `train` (of the training split,
            from at most 128 snapshots) or a statistics file.
        class_frequencies: shares of pixels by class; of the training split by default.
        split: fractions for train, val and test, 0.8, 0.1, 0.1 by default; or patterns of files, as
            {train: "train/*", val: "validation/*"}.
        split_by: `time_blocks` or `random`.
        split_block: snapshots a block; a sequence of the generator, else a month of 3-hourly ones
            (fewer, where there are few files).
        n_samples, steps_per_sequence, n_processes: of the generator.
        options: of `HDF5DataModule`.

    Raises:
        UserError: an argument is none of these; what a data set may raise, on every rank.
    """

    samples_class = ClimateSamples

    def __init__(
        self,
        path: str,
        size: str | None = None,
        *,
        channels: Sequence[str] | None = None,
        labels: str = "labels_0",
        label_plane: int = 0,
        normalization: str = "minmax",
        normalization_of: Mapping[str, str] | None = None,
        statistics: str = "deepcam",
        class_frequencies: Sequence[float] | None = None,
        split: Sequence[float] | Mapping[str, str] | None = None,
        split_by: SplitBy = "time_blocks",
        split_block: int | None = None,
        n_samples: int | None = None,
        steps_per_sequence: int | None = None,
        n_processes: int = 1,
        seed: int = 0,
        files: Sequence[str] = ("**/data-*.h5",),
        **options: Any,
    ) -> None:
        if split_by not in ("time_blocks", "random"):
            raise UserError(
                f"data.split_by: expected time_blocks or random, got {split_by!r}. Next, correct "
                "it."
            )
        shape = climate_size("full" if size is None else size).shape
        split = (0.8, 0.1, 0.1) if split is None else split
        by_pattern = isinstance(split, Mapping)
        super().__init__(
            path,
            climate_schema(shape),
            files=files,
            split=(0.8, 0.1, 0.1) if by_pattern else split,
            seed=seed,
            **options,
        )
        self.shards = None
        if size is not None:
            self.shards = ClimateShards(size, seed, n_samples, steps_per_sequence)
        self.patterns = dict(split) if by_pattern else None
        if by_pattern and (unknown := [name for name in split if name not in SPLITS]):
            raise UserError(f"data.split: expected patterns for {SPLITS}, got {unknown} as well.")
        self.split_by, self.split_block = split_by, split_block
        self.channels: list[str] = list(channels or CHANNELS)
        self._chosen = None if channels is None else tuple(channels)
        self.labels, self.label_plane = labels, label_plane
        self.class_names = list(CLASS_NAMES)
        self.n_processes = n_processes
        self.statistics = statistics
        self._methods = (normalization, normalization_of)
        self.normalization: Normalization | None = None
        self.class_frequencies = None if class_frequencies is None else list(class_frequencies)

    @property
    def latitude_deg(self) -> np.ndarray:
        """[H] float64: CAM5's, from pole to pole; known after `setup`."""
        return regular_grid(*self.schema["fields"].shape[:2]).latitude_deg

    @property
    def longitude_deg(self) -> np.ndarray:
        """[W] float64, from 0 to the east."""
        return regular_grid(*self.schema["fields"].shape[:2]).longitude_deg

    def prepare_data(self) -> None:
        """Generate, or index what is there, on rank 0: under torchrun all ranks come here."""
        if rank_zero_only.rank != 0:
            return
        try:
            if self.shards:
                self.shards.generate(self.root, self.n_processes)
            else:
                cached_manifest(self.manifest_path, self._describe, {})
        except UserError as error:
            if self.world.world_size == 1:
                raise
            self._prepare_error = error

    def setup(self, stage: str) -> None:
        if self.samples:
            return
        self.agreement.raise_together(self._prepare_error)
        super().setup(stage)
        normalization = self._together(self._on_rank_0(self._normalization))
        frequencies = self._together(self._on_rank_0(self._frequencies))
        self.normalization, self.class_frequencies = self.agreement.gather(
            (normalization, frequencies)
        )[0]
        self._tell_samples()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> ClimateBatch:
        return ClimateBatch(batch["index"], batch["fields"], batch[self.labels])

    def on_after_batch_transfer(self, batch: ClimateBatch, dataloader_idx: int) -> ClimateBatch:
        return scaled(batch, self.normalization)

    def state_dict(self) -> dict[str, Any]:
        """The scaling and the classes' shares: into every checkpoint."""
        if self.normalization is None:
            return {}
        return {
            "normalization": self.normalization.state(),
            "class_frequencies": self.class_frequencies,
            "class_names": self.class_names,
            "grid_shape": list(self.schema["fields"].shape[:2]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the scaling of a checkpoint in the place of one's own.

        Raises:
            CheckpointError: it is of other channels.
        """
        if not state:
            return
        kept = Normalization.from_state(state["normalization"])
        if self.samples or self._chosen:
            require_channels(kept, self.channels)
        self.normalization, self.class_frequencies = kept, list(state["class_frequencies"])
        self._tell_samples()

    def _describe(self) -> Manifest:
        return describe_files(self.root, matching(self.root, self.files))

    def _read_manifest(self) -> Manifest:
        generated = self.shards.require(self.root) if self.shards else None
        self.schema = dict(self._described(generated or read_manifest(self.manifest_path)))
        if self.normalization is not None:
            require_channels(self.normalization, self.channels)
        return super()._read_manifest()

    def _described(self, manifest: Manifest) -> Schema:
        """What to read of files of this manifest."""
        there = manifest.schema
        for name in ("fields", self.labels):
            if name not in there:
                raise SchemaMismatchError(
                    f"{self.manifest_path} lists no {name}: expected it among {sorted(there)}. "
                    "Next, set data.labels to what is there; or, where the manifest was made by "
                    "another program, delete it."
                )
        fields, label = there["fields"], there[self.labels]
        self.channels = list(self._chosen or fields.channels)
        if missing := [name for name in self.channels if name not in fields.channels]:
            raise ChannelError(
                f"{self.root}: expected the channels {self.channels}, without {missing} in "
                f"{list(fields.channels)}. Next, set data.channels to some of these."
            )
        if label.channels and self.label_plane not in range(len(label.channels)):
            raise SchemaMismatchError(
                f"{self.root}: {self.labels} has {len(label.channels)} planes. Expected "
                f"data.label_plane below that, got {self.label_plane}. Next, correct it."
            )
        plane = (label.channels[self.label_plane],) if label.channels else ()
        return {
            "fields": replace(fields, select=tuple(self.channels)),
            self.labels: replace(label, select=plane),
        }

    def _splits(self, root: Path, manifest: Manifest, findings: Any) -> dict[str, HDF5Samples]:
        if self.patterns is None:
            blocks = split_blocks(manifest.n_samples, self.split, self._block(manifest), self.seed)
            parts = {
                name: part
                for name, part, share in zip(SPLITS, blocks, self.split, strict=False)
                if share > 0
            }
        else:
            parts = {
                name: _matching_samples(manifest, pattern)
                for name, pattern in self.patterns.items()
            }
        return {
            name: self._samples(root, manifest, without_bad(part, manifest, findings, self.on_bad))
            for name, part in parts.items()
        }

    def _block(self, manifest: Manifest) -> int:
        if self.split_by == "random":
            return 1
        if self.split_block is not None:
            return self.split_block
        month = 30 * _STEPS_A_DAY
        return self.shards.steps if self.shards else min(month, max(1, manifest.n_samples // 20))

    def _on_rank_0(self, action: Any) -> Any:
        return action if self.world.rank == 0 else lambda: None

    def _normalization(self) -> Normalization:
        if self.normalization is not None:
            return self.normalization
        return normalization(self._table(), self.channels, *self._methods)

    def _table(self) -> ChannelTable:
        if self.statistics == "deepcam":
            return deepcam_table()
        if self.statistics != "train":
            return read_statistics_file(Path(self.statistics))
        samples = self._some("fields")
        statistics = build_statistics(samples, seed=self.seed)["fields"]
        samples.close()
        return table_of(statistics, self.channels, "the training split")

    def _frequencies(self) -> list[float]:
        if self.class_frequencies is not None:
            return self.class_frequencies
        samples = self._some(self.labels)
        counts = np.zeros(len(CLASS_NAMES), dtype=np.int64)
        buffers = {name: np.empty(s[1:], d) for name, (s, d) in samples.shapes(1).items()}
        for index in range(len(samples)):
            samples.read_into(index, buffers)
            label = buffers[self.labels].ravel()
            counts += np.bincount(label.clip(0, 2).astype(int), minlength=len(counts))
        samples.close()
        # A class that is not there counts one pixel: weights by shares stay finite.
        counts = counts.clip(min=1)
        return (counts / counts.sum()).tolist()

    def _some(self, name: str) -> HDF5Samples:
        """At most 128 training snapshots, evenly spread, of one field."""
        train = self.samples.get("train") or next(iter(self.samples.values()))
        stride = max(1, -(-len(train) // _LOOKED_AT))
        fields = {name: self.schema[name]}
        return HDF5Samples(train.root, train.manifest, fields, train.indices[::stride])

    def _tell_samples(self) -> None:
        for samples in self.samples.values():
            samples.normalization = self.normalization


def to_batch(sample: Mapping[str, Any], scaling: Normalization | None) -> ClimateBatch:
    """A dict of what was read, or a batch of them, as `ClimateBatch`; not scaled if None."""
    labels = next(value for name, value in sample.items() if name.startswith("labels"))
    return scaled(ClimateBatch(sample["index"], sample["fields"], labels), scaling)


def scaled(batch: ClimateBatch, scaling: Normalization | None) -> ClimateBatch:
    """Fields scaled, still channels-last; labels int64 without an axis of planes."""
    fields = batch.fields.float() if scaling is None else scaling(batch.fields)
    labels: Tensor = batch.labels
    if labels.ndim == fields.ndim:
        labels = labels.squeeze(-3)
    return ClimateBatch(batch.index, fields, labels.long())


def require_channels(scaling: Normalization, channels: Sequence[str]) -> None:
    """Raise CheckpointError unless a checkpoint's scaling is of these channels in this order."""
    if list(scaling.channels) != list(channels):
        raise CheckpointError(
            f"the checkpoint was trained on other channels: expected {list(scaling.channels)}, got "
            f"{list(channels)}. Next, set data.channels to those of the checkpoint."
        )


def _matching_samples(manifest: Manifest, pattern: str) -> np.ndarray:
    chosen = [fnmatch(entry.path, pattern) for entry in manifest.files]
    return np.flatnonzero(np.asarray(chosen)[manifest.file_of_sample])
