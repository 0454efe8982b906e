"""Any task on HDF5 files: splits, staging, checks, and loaders that agree over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np

from zoo.data.agreement import Agreement
from zoo.data.hdf5 import HDF5Samples
from zoo.data.loader import Loader
from zoo.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    cached_manifest,
    index_files,
    matching,
    read_manifest,
    require_schema,
)
from zoo.data.sampler import EpochBatches, ExactBatches, Kind, World, split_blocks
from zoo.data.schema import schema_from
from zoo.data.stage import STAGES, Stage, copy_files, files_of_node, files_to_copy, require_room
from zoo.data.verify import LEVELS, POLICIES, Level, Policy, verify_together, without_bad
from zoo.errors import UserError

SPLITS = ("train", "val", "test")


class HDF5DataModule(L.LightningDataModule):
    """Batches are dicts of tensors by field, and "index", [B]: see `zoo.data.loader.Loader`.

    Args:
        root: folder of the files; of `manifest.json` too, unless `manifest` says otherwise.
        schema: which fields to read, as `zoo.data.schema.Field` has them.
        files: patterns of files, or `PATTERN:DATASET`; looked at once, by rank 0, where there is no
            manifest yet.
        manifest: where to keep it, if `root` cannot be written to.
        split: fractions for train, val and test.
        split_block: neighbouring samples that stay in one split (`split_blocks`).
        batch_size: samples a rank and step.
        sampler: `global`, `node` or `block` (`EpochBatches`); `stage=shard` needs `node`.
        stage: `node` copies all files to `stage_folder` of each node before training, `shard` each
            file to one node.
        verify: how closely the files are looked at before training: `off`, `sizes`, `open`, `full`.
        on_bad: what to do with what is bad: `raise`, `skip`, `substitute`; all ranks do alike.
        check_values: look for NaN and labels out of range also while training.
        num_workers, prefetch, start_method, pin, dummy, stall_timeout_s: as `Loader` has them.
        seed: of splits and order.

    Raises:
        UserError: an argument is none of these; what a data set may raise, on every rank.
    """

    samples_class = HDF5Samples
    """What `samples` holds, by split; a data module of one task has its own."""

    def __init__(
        self,
        root: str,
        schema: Mapping[str, Any],
        *,
        files: Sequence[str] = ("*.h5",),
        manifest: str | None = None,
        split: Sequence[float] = (0.8, 0.1, 0.1),
        split_block: int = 1,
        batch_size: int = 1,
        sampler: Kind = "global",
        sampler_block: int | None = None,
        tail: Literal["drop", "repeat"] = "drop",
        stage: Stage = "off",
        stage_folder: str | None = None,
        verify: Level = "sizes",
        on_bad: Policy = "raise",
        check_values: bool = False,
        num_workers: int = 1,
        prefetch: int = 2,
        start_method: str = "forkserver",
        pin: bool | None = None,
        dummy: bool = False,
        stall_timeout_s: float = 600.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require_choices(stage=(stage, STAGES), verify=(verify, LEVELS), on_bad=(on_bad, POLICIES))
        if stage == "shard" and sampler != "node":
            raise _choice_error("sampler", sampler, ("node",), " with data.stage=shard")
        if stage != "off" and stage_folder is None:
            raise _choice_error("stage_folder", stage_folder, ("a folder",), " to stage to")
        self.root = Path(root)
        self.schema = schema_from(schema)
        self.files = list(files)
        self.manifest_path = Path(manifest) if manifest else self.root / MANIFEST_NAME
        self.split, self.split_block = tuple(split), split_block
        self.batch_size, self.seed = batch_size, seed
        self.sampler, self.sampler_block, self.tail = sampler, sampler_block, tail
        self.stage_mode, self.stage_folder = stage, Path(stage_folder or ".")
        self.verify_level, self.on_bad, self.check_values = verify, on_bad, check_values
        self.loader_options = {
            "num_workers": num_workers,
            "prefetch": prefetch,
            "start_method": start_method,
            "pin": pin,
            "dummy": dummy,
            "stall_timeout_s": stall_timeout_s,
        }
        self.agreement = Agreement()
        self.samples: dict[str, HDF5Samples] = {}
        self._loaders: list[Loader] = []
        self._prepare_error: UserError | None = None
        # One rank looks at foreign files and writes the manifest.
        self.prepare_data_per_node = False

    @property
    def world(self) -> World:
        """The trainer's ranks; one, where there is no trainer."""
        if self.trainer is None:
            return World()
        return World(self.trainer.world_size, self.trainer.global_rank, self.trainer.num_nodes)

    def prepare_data(self) -> None:
        try:
            cached_manifest(
                self.manifest_path,
                lambda: index_files(self.root, matching(self.root, self.files), self.schema),
                self.schema,
            )
        except UserError as error:
            if self.world.world_size == 1:
                raise
            # Raised by all in `setup`: here the others wait for this rank, and would go on to.
            self._prepare_error = error

    def setup(self, stage: str) -> None:
        if self.samples:
            return
        # Every rank meets the others in each of these, also the one that has failed.
        self.agreement.raise_together(self._prepare_error)
        manifest = self._together(self._read_manifest)
        root = self.root
        if self.stage_mode != "off":
            self._together(lambda: self._require_room(manifest))
            self._together(lambda: self._copy(manifest))
            root = self.stage_folder
        findings = verify_together(
            root, manifest, self.verify_level, self.agreement, self._shares(manifest),
            self.world.rank, self.schema,
        )  # fmt: skip
        self.samples = self._together(lambda: self._splits(root, manifest, findings))

    def train_dataloader(self) -> Loader:
        samples = self.samples["train"]
        batches = EpochBatches(
            len(samples),
            self.batch_size,
            self.world,
            kind=self.sampler,
            seed=self.seed,
            tail=self.tail,
            file_of_sample=samples.file_of_sample,
            block_size=self.sampler_block,
        )
        agree = self.agreement.raise_together if self.on_bad == "raise" else None
        return self._loader(samples, batches, agree=agree)

    def val_dataloader(self) -> Loader | list[Loader]:
        return self._exact("val")

    def test_dataloader(self) -> Loader | list[Loader]:
        return self._exact("test")

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _exact(self, split: str) -> Loader | list[Loader]:
        samples = self.samples.get(split)
        if samples is None:
            return []
        files = samples.file_of_sample if self.sampler == "node" else None
        return self._loader(samples, ExactBatches(len(samples), self.batch_size, self.world, files))

    def _loader(self, samples: HDF5Samples, batches: Any, **options: Any) -> Loader:
        loader = Loader(samples, batches, **self.loader_options, **options)
        self._loaders.append(loader)
        return loader

    def _together(self, action: Any) -> Any:
        error, result = None, None
        try:
            result = action()
        except UserError as raised:
            error = raised
        self.agreement.raise_together(error)
        return result

    def _read_manifest(self) -> Manifest:
        manifest = read_manifest(self.manifest_path)
        require_schema(manifest, self.schema, self.manifest_path)
        return manifest

    def _require_room(self, manifest: Manifest) -> None:
        # All of the node's files, by each of its ranks: they share the disk.
        files = files_of_node(manifest, self.stage_mode, self.world)
        require_room(self.root, self.stage_folder, manifest, files)

    def _copy(self, manifest: Manifest) -> None:
        files = files_to_copy(manifest, self.stage_mode, self.world)
        copy_files(self.root, self.stage_folder, manifest, files)

    def _shares(self, manifest: Manifest) -> list[list[int]]:
        """Which rank looks at which files: each once where all see all, else those of its node."""
        world_size, _, n_nodes = self.world
        stage = self.stage_mode
        if stage == "off":
            stage, n_nodes = "node", 1
        worlds = [World(world_size, rank, n_nodes) for rank in range(world_size)]
        return [files_to_copy(manifest, stage, world) for world in worlds]

    def _splits(self, root: Path, manifest: Manifest, findings: Any) -> dict[str, HDF5Samples]:
        parts = split_blocks(manifest.n_samples, self.split, self.split_block, self.seed)
        return {
            name: self._samples(root, manifest, without_bad(part, manifest, findings, self.on_bad))
            for name, part in zip(SPLITS, parts, strict=False)
            if self.split[SPLITS.index(name)] > 0
        }

    def _samples(self, root: Path, manifest: Manifest, indices: np.ndarray) -> HDF5Samples:
        return self.samples_class(
            root,
            manifest,
            self.schema,
            indices,
            on_bad="raise" if self.on_bad == "raise" else "substitute",
            check_values=self.check_values,
        )


def _require_choices(**choices: tuple[str, Sequence[str]]) -> None:
    for name, (got, allowed) in choices.items():
        if got not in allowed:
            raise _choice_error(name, got, allowed)


def _choice_error(name: str, got: Any, allowed: Sequence[str], when: str = "") -> UserError:
    return UserError(
        f"data.{name}: expected {' or '.join(allowed)}{when}, got {got!r}. Next, correct it."
    )
