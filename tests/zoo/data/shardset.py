"""Small sets of shards whose samples say who they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo.data.manifest import Manifest
from zoo.data.schema import Field
from zoo.data.shards import ShardWriter, generate_shards

N_SAMPLES = 23
SCHEMA = {
    "image": Field("climate/data", (6, 5, 4), "float32", "HWC", ("a", "b", "c", "d")),
    "label": Field("climate/labels_0", (6, 5), "uint8", "HW", n_classes=3),
}


def make_sample(index: int) -> dict[str, np.ndarray]:
    """Channel c of the image holds 10 * index + c in its corner, noise elsewhere."""
    generator = np.random.default_rng(index)
    image = generator.random((6, 5, 4), dtype=np.float32)
    image[0, 0] = 10 * index + np.arange(4)
    return {"image": image, "label": generator.integers(3, size=(6, 5), dtype=np.uint8)}


def write_set(folder: Path, n_samples: int = N_SAMPLES, samples_per_shard: int = 5) -> Manifest:
    return generate_shards(ShardWriter(folder, SCHEMA, n_samples, samples_per_shard), make_sample)
