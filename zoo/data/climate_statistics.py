"""Statistics of channels: files of DeepCAM and S6, the table that comes with the zoo, new ones.

[Note: squares in float32] DeepCAM's file keeps the mean and the mean square of 121,266 snapshots in
float32. Their difference is the variance, and where it is small beside the squared mean nothing is
left of it: for PSL it is negative, for T500 twice too large, for TS a third too small. A variance
below a hundredth of the squared mean is therefore not believed: `std` is NaN there, and a scaling
that needs it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from zoo.data.climate_channels import CHANNELS, TABLE
from zoo.data.hdf5 import HDF5Samples
from zoo.data.manifest import Manifest
from zoo.data.statistics import ChannelStatistics, build_statistics
from zoo.errors import ChannelError, DataFileError
from zoo.files import written_whole
from zoo.progress import progress

DEEPCAM_FILE = Path(__file__).parent / "climate_stats" / "stats.h5"
_BELIEVED = 1e-2
_S6_ROWS = ("mean", "maximum", "minimum", "std")


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """By channel, float64 [C] each; NaN where it is not known.

    Attributes:
        source: where it comes from, for errors.
    """

    names: tuple[str, ...]
    source: str
    mean: np.ndarray
    std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    p1: np.ndarray
    p50: np.ndarray
    p99: np.ndarray

    def require(self, names: Sequence[str]) -> None:
        """Raise ChannelError unless the table has all these channels."""
        if missing := [name for name in names if name not in self.names]:
            raise ChannelError(
                f"{self.source} has statistics of another channel set: expected {list(names)}, "
                f"without {missing} in {list(self.names)}. Next, set data.statistics=train, or to "
                "a file of these channels."
            )

    def row(self, name: str) -> dict[str, float]:
        """The numbers of one channel."""
        place = self.names.index(name)
        keys = ("mean", "std", "minimum", "maximum", "p1", "p50", "p99")
        return {key: float(getattr(self, key)[place]) for key in keys}


def deepcam_table() -> ChannelTable:
    """Mean and range of DeepCAM's own file; standard deviations and percentiles of `TABLE`."""
    of_file = read_statistics_file(DEEPCAM_FILE)
    spread = {
        key: np.array([getattr(channel, key) for channel in TABLE])
        for key in ("std", "p1", "p50", "p99")
    }
    return ChannelTable(
        CHANNELS, "DeepCAM's table", of_file.mean, minimum=of_file.minimum,
        maximum=of_file.maximum, **spread,
    )  # fmt: skip


def read_statistics_file(path: Path) -> ChannelTable:
    """S6's layout, `/climate/stats` [C, 4] of mean, max, min, std; or DeepCAM's, a dataset each.

    Its channels are those that it lists in `/climate/channels`, or CAM5's sixteen.

    Raises:
        DataFileError: there is no such file, or it has neither layout.
        ChannelError: it has as many rows as no channel set that is known.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = file["climate"]
            columns = _s6(group) if "stats" in group else _deepcam(group)
            listed = channels_of(group)
    except (OSError, KeyError) as error:
        raise DataFileError(
            f"no usable statistics in {path}: expected /climate/stats (S6), or /climate/mean, "
            f"sqmean, minval and maxval (DeepCAM), got {error}. Next, set data.statistics=deepcam "
            "or train."
        ) from error
    names = listed or CHANNELS
    lengths = {key: len(values) for key, values in columns.items()}
    if set(lengths.values()) != {len(names)}:
        raise ChannelError(
            f"{path} has statistics of another channel set: expected {len(names)} rows for "
            f"{list(names)}, got {lengths}. Next, set data.statistics=train, or to a file of these "
            "channels."
        )
    unknown = np.full(len(names), np.nan)
    return ChannelTable(
        names, str(path), **{"p1": unknown, "p50": unknown, "p99": unknown, **columns}
    )


def channels_of(group: h5py.Group) -> tuple[str, ...] | None:
    """What `channels` lists: names, or places among CAM5's sixteen; None where there is none."""
    if "channels" in group:
        listed = group["channels"][()]
    elif "channels" in group.file.attrs:
        listed = str(group.file.attrs["channels"]).split()
    else:
        return None
    return tuple(_name_of(item, group) for item in np.atleast_1d(listed))


def _name_of(item: object, group: h5py.Group) -> str:
    if isinstance(item, bytes):
        return item.decode()
    if isinstance(item, str):
        return str(item)
    if not 0 <= int(item) < len(CHANNELS):
        raise ChannelError(
            f"{group.file.filename}: /climate/channels expected names, or numbers 0 to "
            f"{len(CHANNELS) - 1}, got {item}. Next, correct it."
        )
    return CHANNELS[int(item)]


def _s6(group: h5py.Group) -> dict[str, np.ndarray]:
    rows = np.asarray(group["stats"], dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(_S6_ROWS):
        raise KeyError(f"/climate/stats of shape {rows.shape}")
    return dict(zip(_S6_ROWS, rows.T, strict=True))


def _deepcam(group: h5py.Group) -> dict[str, np.ndarray]:
    mean, squares, minimum, maximum = (
        np.asarray(group[key], dtype=np.float64) for key in ("mean", "sqmean", "minval", "maxval")
    )
    variance = squares - np.square(mean)
    believed = variance > _BELIEVED * np.square(mean)
    std = np.sqrt(np.where(believed, variance, np.nan))
    return {"mean": mean, "std": std, "minimum": minimum, "maximum": maximum}


def table_of(statistics: ChannelStatistics, names: Sequence[str], source: str) -> ChannelTable:
    """What `build_statistics` found, in float64 throughout."""
    p1, p50, p99 = (np.array(statistics.percentiles[key]) for key in ("1", "50", "99"))
    moments = (statistics.mean, statistics.std, statistics.minimum, statistics.maximum)
    return ChannelTable(tuple(names), source, *(np.array(each) for each in moments), p1, p50, p99)


def write_statistics_file(root: Path, manifest: Manifest, path: Path) -> None:
    """One pass over all snapshots; both layouts in one file, in float64.

    Args:
        root, manifest: of a set whose field `fields` has named channels.
    """
    field = manifest.schema["fields"]
    samples = HDF5Samples(root, manifest, {"fields": field})
    indices = progress(range(len(samples)), len(samples), "Statistics")
    statistics = build_statistics(samples, indices)["fields"]
    samples.close()
    table = table_of(statistics, field.channels, str(path))
    columns: Mapping[str, np.ndarray | int] = {
        "count": len(samples),
        "mean": table.mean,
        "sqmean": np.square(table.std) + np.square(table.mean),
        "minval": table.minimum,
        "maxval": table.maximum,
        "stats": np.stack([table.mean, table.maximum, table.minimum, table.std], axis=1),
    }
    with written_whole(path) as fresh, h5py.File(fresh, "w", locking=False) as file:
        for name, values in columns.items():
            file.create_dataset(f"climate/{name}", data=values, track_times=False)
        file["climate"].create_dataset("channels", data=list(field.channels), track_times=False)
