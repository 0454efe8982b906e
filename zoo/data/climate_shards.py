"""A data set of synthetic climate snapshots in DeepCAM's layout, one a file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data.climate_channels import CHANNELS, CLASS_NAMES, CYCLONE, RIVER
from zoo.data.climate_fields import make_fields
from zoo.data.climate_grid import Grid, regular_grid
from zoo.data.climate_labels import LABELS_0, LABELS_1, label_snapshot, river_mask
from zoo.data.climate_statistics import write_statistics_file
from zoo.data.generated import generate_alone, require_finished
from zoo.data.manifest import Manifest
from zoo.data.schema import Field, Schema
from zoo.data.shards import ShardWriter
from zoo.errors import UserError

STATISTICS_NAME = "stats.h5"


class Size(NamedTuple):
    """Grid, snapshots, and how many 3-hourly steps of one weather follow each other."""

    shape: tuple[int, int]
    n_samples: int
    steps_per_sequence: int


SIZES = {
    "tiny": Size((96, 144), 320, 4),
    "small": Size((192, 288), 480, 8),
    "medium": Size((384, 576), 240, 8),
    "full": Size((768, 1152), 80, 8),
}


def climate_size(name: str) -> Size:
    """Raises UserError, listing those there are."""
    if name not in SIZES:
        raise UserError(
            f"no size {name!r}. Expected one of {', '.join(SIZES)}. Next, set size=tiny."
        )
    return SIZES[name]


def climate_schema(shape: tuple[int, int]) -> Schema:
    """All that a generated file holds."""
    label = {"shape": shape, "dtype": "float32", "layout": "HW", "n_classes": len(CLASS_NAMES)}
    return {
        "fields": Field("climate/data", (*shape, len(CHANNELS)), "float32", "HWC", CHANNELS),
        "labels_0": Field("climate/labels_0", **label),
        "labels_1": Field("climate/labels_1", **label),
    }


@dataclass(frozen=True)
class SnapshotWriter(ShardWriter):
    """Files named as CAM5's were: date, 3-hourly step, run. A sequence is a day."""

    steps_per_sequence: int = 8

    def path_of(self, shard: int) -> Path:
        sequence, step = divmod(shard, self.steps_per_sequence)
        day = date(2000, 1, 1) + timedelta(days=sequence)
        return self.folder / f"data-{day.isoformat()}-{step:02d}-0.h5"


@dataclass(frozen=True)
class ClimateShards:
    """What to generate: called with an index, it makes that snapshot.

    Args:
        size: a name in `SIZES`.
        n_samples: snapshots, where not the size's own.
        steps_per_sequence: consecutive snapshots of one weather, where not the size's own.

    Raises:
        UserError: there is no such size, or a number is below 1.
    """

    size: str
    seed: int = 0
    n_samples: int | None = None
    steps_per_sequence: int | None = None

    def __post_init__(self) -> None:
        climate_size(self.size)
        if min(self.count, self.steps) < 1 or self.steps > 8:
            raise UserError(
                "expected n_samples of 1 or more and steps_per_sequence of 1 to 8 (a day), got "
                f"{self.count} and {self.steps}. Next, correct them or leave them out."
            )

    @property
    def count(self) -> int:
        return climate_size(self.size).n_samples if self.n_samples is None else self.n_samples

    @property
    def steps(self) -> int:
        size = climate_size(self.size)
        return (
            size.steps_per_sequence if self.steps_per_sequence is None else self.steps_per_sequence
        )

    @property
    def grid(self) -> Grid:
        return regular_grid(*climate_size(self.size).shape)

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        sequence, step = divmod(index, self.steps)
        fields = make_fields(self.seed, sequence, step, climate_size(self.size).shape)
        by_name = {name: fields[..., number] for number, name in enumerate(CHANNELS)}
        grid = self.grid
        labels_0 = label_snapshot(by_name, grid, LABELS_0)
        labels_1 = np.where(river_mask(by_name["TMQ"], grid, LABELS_1), RIVER, 0)
        labels_1[labels_0 == CYCLONE] = CYCLONE
        return {
            "fields": fields,
            "labels_0": labels_0.astype(np.float32),
            "labels_1": labels_1.astype(np.float32),
        }

    def writer(self, folder: Path) -> SnapshotWriter:
        return SnapshotWriter(
            folder,
            climate_schema(climate_size(self.size).shape),
            n_samples=self.count,
            samples_per_shard=1,
            attributes={
                "dataset": "climate",
                "size": self.size,
                "seed": self.seed,
                "n_samples": self.count,
                "steps_per_sequence": self.steps,
                "channels": " ".join(CHANNELS),
            },
            flat=True,
            steps_per_sequence=self.steps,
        )

    def generate(self, folder: Path, n_processes: int = 1) -> Manifest:
        """Write what is missing in `folder`, `stats.h5` last: see `generate_alone`."""
        manifest = generate_alone(self.writer(folder), self, n_processes, "snapshots")
        if not (folder / STATISTICS_NAME).exists():
            write_statistics_file(folder, manifest, folder / STATISTICS_NAME)
        return manifest

    def require(self, folder: Path) -> Manifest:
        """The manifest of a finished data set: see `require_finished`."""
        options = f"dataset=climate size={self.size} seed={self.seed}"
        return require_finished(self.writer(folder), options)
