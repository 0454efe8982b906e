"""Climate snapshots: generated once, read by name, split by time, scaled as the checkpoint says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from tests.ranks import errors_of_ranks, run_ranks
from tests.zoo.data.jobs import set_up_climate
from zoo.data import generate
from zoo.data.climate import ClimateDataModule
from zoo.data.climate_batch import ClimateBatch
from zoo.data.climate_channels import CHANNELS
from zoo.data.climate_fields import make_fields
from zoo.data.climate_grid import regular_grid
from zoo.data.climate_labels import LABELS_0, LABELS_1, river_mask
from zoo.data.climate_shards import ClimateShards
from zoo.data.climate_statistics import deepcam_table, read_statistics_file
from zoo.data.generated import require_finished
from zoo.errors import (
    BadSampleError,
    ChannelError,
    CheckpointError,
    DataFileError,
    EmptySplitError,
    SchemaMismatchError,
    UserError,
)
from zoo.runtime import quiet_trainer

_FEW = ClimateShards("tiny", seed=5, n_samples=16, steps_per_sequence=2)
_SHAPE = (96, 144)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 snapshots, two a sequence; read it, leave it as it is."""
    folder = tmp_path_factory.mktemp("climate")
    _FEW.generate(folder)
    return folder


def _module(folder: Path, **options: Any) -> ClimateDataModule:
    of_generator = {"size": "tiny", "seed": 5, "n_samples": 16, "steps_per_sequence": 2}
    defaults = {**of_generator, "split": (0.5, 0.25, 0.25), "batch_size": 2}
    return ClimateDataModule(str(folder), **{**defaults, "num_workers": 0, **options})


def _ready(folder: Path, **options: Any) -> ClimateDataModule:
    module = _module(folder, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def _foreign(folder: Path, number: int = 0, **changes: np.ndarray | None) -> Path:
    """A small file of CAM5's layout; `changes` replace datasets, None leaves one out."""
    rng = np.random.default_rng(number)
    datasets: dict[str, Any] = {
        "data": rng.standard_normal((8, 12, 16)).astype(np.float32),
        "labels_0": rng.integers(0, 3, (8, 12)).astype(np.float32),
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data-2001-02-{number + 1:02d}-00-1.h5"
    with h5py.File(path, "w", locking=False) as file:
        for name, values in datasets.items():
            if values is not None:
                file[f"climate/{name}"] = values
    return path


def _read(folder: Path, **options: Any) -> ClimateDataModule:
    return _ready(folder, **{"size": None, "n_samples": None, "split": (1.0, 0, 0), **options})


def test_files_are_of_deepcams_layout(generated: Path) -> None:
    files = sorted(generated.glob("*.h5"))
    assert files[1].name == "data-2000-01-01-01-0.h5"
    assert files[2].name == "data-2000-01-02-00-0.h5"
    assert len(files) == 16 + 1
    with h5py.File(files[3], locking=False) as file:
        data, labels = file["climate/data"], file["climate/labels_0"]
        assert (data.shape, data.dtype, data.chunks) == ((*_SHAPE, 16), np.float32, None)
        assert (labels.shape, labels.dtype) == (_SHAPE, np.float32)
        np.testing.assert_array_equal(data[()], make_fields(5, 1, 1, _SHAPE))
        for found, rule in ((labels, LABELS_0), (file["climate/labels_1"], LABELS_1)):
            rivers = river_mask(data[..., 0], regular_grid(*_SHAPE), rule)
            assert rivers.any()
            np.testing.assert_array_equal(found[()] == 2, rivers & (found[()] != 1))


def test_statistics_are_written_in_both_layouts(generated: Path) -> None:
    stacked = np.stack([_FEW(index)["fields"] for index in range(16)]).astype(np.float64)
    table = read_statistics_file(generated / "stats.h5")
    np.testing.assert_allclose(table.mean, stacked.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(table.std, stacked.std(axis=(0, 1, 2)), rtol=1e-9)
    with h5py.File(generated / "stats.h5", locking=False) as file:
        climate = file["climate"]
        assert climate["stats"].shape == (16, 4)
        assert climate["count"][()] == 16
        variance = climate["sqmean"][()] - np.square(climate["mean"][()])
    # In float64, PSL keeps its spread.
    np.testing.assert_allclose(np.sqrt(variance), table.std, rtol=1e-5)


@pytest.mark.slow
def test_processes_give_the_same_files(generated: Path, tmp_path: Path) -> None:
    shards = ClimateShards("tiny", seed=5, n_samples=3, steps_per_sequence=2)
    manifest = shards.generate(tmp_path, n_processes=2)
    for index, entry in enumerate(manifest.files):
        with h5py.File(tmp_path / entry.path, locking=False) as file:
            np.testing.assert_array_equal(file["climate/data"], _FEW(index)["fields"])


def test_the_command_generates(program: Any, tmp_path: Path, capsys: Any) -> None:
    overrides = ("dataset=climate", "size=tiny", "dataset.n_samples=2", "n_processes=1")
    program(generate.main, "run", *overrides, f"folder={tmp_path / 'climate'}")
    assert "2 samples in 2 shards, 2.0 MB" in capsys.readouterr().out
    assert (tmp_path / "climate" / "stats.h5").exists()


def test_batches_are_scaled_and_channels_last(generated: Path) -> None:
    module = _ready(generated, normalization="zscore", normalization_of={"PRECT": "log1p"})
    raw = next(iter(module.train_dataloader()))
    batch = module.on_after_batch_transfer(module.on_before_batch_transfer(raw, 0), 0)
    assert isinstance(batch, ClimateBatch)
    assert batch.fields.shape == (2, 16, *_SHAPE)
    assert batch.fields.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.shape, batch.labels.dtype) == ((2, *_SHAPE), torch.int64)
    table = deepcam_table()
    expected = (raw["fields"][:, 7] - table.mean[7]) / table.std[7]
    torch.testing.assert_close(batch.fields[:, 7], expected.float(), atol=1e-4, rtol=1e-4)
    rain = batch.fields[:, CHANNELS.index("PRECT")]
    assert 0.0 <= float(rain.min()) < float(rain.max()) <= 1.0
    sample = module.samples["train"][int(batch.index[0])]
    assert torch.equal(sample.fields, batch.fields[0])
    assert torch.equal(sample.labels, batch.labels[0])


def test_minmax_is_the_seeds(generated: Path) -> None:
    module = _ready(generated, channels=["PSL", "TMQ"])
    raw = next(iter(module.train_dataloader()))
    fields = module.normalization(raw["fields"])
    with h5py.File(Path(deepcam_table.__code__.co_filename).parent / "climate_stats/stats.h5") as f:
        low, high = f["climate/minval"][()], f["climate/maxval"][()]
    for place, number in enumerate((7, 0)):
        expected = (raw["fields"][:, place] - low[number]) / (high[number] - low[number])
        torch.testing.assert_close(fields[:, place], expected, atol=1e-5, rtol=1e-5)


def test_blocks_of_time_stay_in_one_split(generated: Path) -> None:
    module = _ready(generated)
    parts = {name: samples.indices for name, samples in module.samples.items()}
    assert [len(part) for part in parts.values()] == [8, 4, 4]
    sequences = [set((part // 2).tolist()) for part in parts.values()]
    assert sum(map(len, sequences)) == len(set.union(*sequences)) == 8
    alone = _ready(generated, split_by="random", seed=5)
    random = [set((s.indices // 2).tolist()) for s in alone.samples.values()]
    assert sum(map(len, random)) > 8, "sequences are torn apart"


def test_splits_may_be_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "train", "validation")):
        _foreign(tmp_path / name, number)
    module = _read(tmp_path, split={"train": "train/*", "val": "validation/*"})
    assert {name: list(s.indices) for name, s in module.samples.items()} == {
        "train": [0, 1],
        "val": [2],
    }


def test_channels_come_by_name_from_files_that_lack_some(tmp_path: Path) -> None:
    _foreign(tmp_path, data=np.ones((8, 12, 3), np.float32) * [1, 2, 3], channels=[7, 0, 10])
    module = _read(tmp_path, channels=["PRECT", "PSL"], normalization="none")
    assert module.samples["train"][0].fields[:, 0, 0].tolist() == [3.0, 1.0]
    assert _read(tmp_path, normalization="none").channels == ["PSL", "TMQ", "PRECT"]
    with pytest.raises(ChannelError, match=r"without \['T200'\] in \['PSL', 'TMQ', 'PRECT'\]"):
        _read(tmp_path, channels=["T200"])


def test_older_labels_have_planes(tmp_path: Path) -> None:
    planes = np.stack([np.zeros((8, 12)), np.ones((8, 12))]).astype(np.float32)
    _foreign(tmp_path, labels=planes)
    assert _read(tmp_path, labels="labels", label_plane=1).samples["train"][0].labels.min() == 1
    assert _read(tmp_path, labels="labels").samples["train"][0].labels.max() == 0
    assert _read(tmp_path).samples["train"][0].labels.max() == 2
    with pytest.raises(SchemaMismatchError, match="lists no labels_1"):
        _read(tmp_path, labels="labels_1")


def test_many_snapshots_in_a_file(tmp_path: Path) -> None:
    data = np.arange(3 * 8 * 12 * 16, dtype=np.float32).reshape(3, 8, 12, 16)
    _foreign(tmp_path, data=data, labels_0=np.zeros((3, 8, 12), np.float32))
    module = _read(tmp_path, normalization="none")
    assert len(module.samples["train"]) == 3
    assert module.samples["train"][2].fields[4, 1, 1] == data[2, 1, 1, 4]


def test_class_shares_are_those_of_training(generated: Path) -> None:
    module = _ready(generated)
    labels = torch.stack([sample.labels for sample in module.samples["train"]])
    shares = torch.bincount(labels.ravel(), minlength=3) / labels.numel()
    assert module.class_frequencies == pytest.approx(shares.tolist(), rel=1e-6)
    assert _ready(generated, class_frequencies=[0.9, 0.01, 0.09]).class_frequencies[0] == 0.9
    assert module.latitude_deg.shape == (96,)
    assert module.longitude_deg[1] == 2.5


class _Tiny(L.LightningModule):
    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(n_channels, 3, 1)

    def training_step(self, batch: ClimateBatch, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch.fields), batch.labels)

    def validation_step(self, batch: ClimateBatch, _: int) -> None:
        """Lightning warns of validation data without one."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_scaling_goes_with_the_checkpoint(
    generated: Path, tmp_path: Path, clean_process: None
) -> None:
    options = {"channels": ["TMQ", "PSL"], "statistics": "train", "normalization": "robust"}
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(_Tiny(2), _module(generated, **options))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    scaling = trainer.datamodule.normalization
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    other = _module(generated, channels=["TMQ", "PSL"])
    other.load_state_dict(checkpoint["ClimateDataModule"])
    other.setup("test")
    assert other.normalization == scaling
    assert other.samples["val"].normalization == scaling
    wrong = _ready(generated, channels=["PSL", "TMQ"])
    with pytest.raises(CheckpointError, match=r"expected \['TMQ', 'PSL'\], got \['PSL', 'TMQ'\]"):
        wrong.load_state_dict(checkpoint["ClimateDataModule"])


@pytest.mark.parametrize(
    ("error", "message", "changes", "options"),
    [
        (BadSampleError, r"labels 0 to 2, got .* to 3", {"labels_0": 3}, {"check_values": True}),
        (BadSampleError, "got 1 NaN or infinite", {"data": math.nan}, {"check_values": True}),
        (
            SchemaMismatchError,
            r"on the grid of .*\(8, 12\), got \(9, 12\)",
            {"labels_0": "row"},
            {},
        ),
        (SchemaMismatchError, "lists no labels_0", {"labels_0": None}, {}),
        (SchemaMismatchError, "expected /climate/data of", {"data": None}, {}),
        (ChannelError, "numbers 0 to 15, got 16", {"channels": [16] * 16}, {}),
        (ChannelError, "16 channels in /climate/channels, got 2", {"channels": [0, 1]}, {}),
        (EmptySplitError, "the split chose none", {}, {"split": (0.2, 0.4, 0.4)}),
        (
            UserError,
            r"TMQ: expected a normalization of .* got 'magic'",
            {},
            {"normalization": "magic"},
        ),
        (UserError, r"names \['SST'\]", {}, {"normalization_of": {"SST": "log1p"}}),
        (UserError, r"U850: log1p expected .* never negative", {}, {"normalization": "log1p"}),
        (DataFileError, "no usable statistics", {}, {"statistics": "nowhere.h5"}),
        (UserError, "time_blocks or random, got 'hours'", {}, {"split_by": "hours"}),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, error: type[Exception], message: str, changes: Any, options: Any
) -> None:
    data = np.zeros((8, 12, 16), np.float32)
    labels = np.zeros((8, 12), np.float32)
    replaced = dict(changes)
    if changes.get("labels_0") == 3:
        labels[2, 2], replaced["labels_0"] = 3, labels
    elif changes.get("labels_0") == "row":
        replaced["labels_0"] = np.zeros((9, 12), np.float32)
    if "data" in changes and changes["data"] is not None:
        data[1, 1, 1], replaced["data"] = math.nan, data
    _foreign(tmp_path, **replaced)
    with pytest.raises(error, match=message):
        next(iter(_read(tmp_path, batch_size=1, **options).train_dataloader()))


def test_files_of_one_folder_agree(tmp_path: Path) -> None:
    _foreign(tmp_path / "order", 0, channels=list(range(16)))
    _foreign(tmp_path / "order", 1, channels=[1, 0, *range(2, 16)])
    with pytest.raises(ChannelError, match=r"data-2001-02-02-00-1.h5: expected the channels"):
        _read(tmp_path / "order")
    _foreign(tmp_path / "grid", 0)
    _foreign(tmp_path / "grid", 1, data=np.zeros((9, 12, 16), np.float32))
    with pytest.raises(SchemaMismatchError, match=r"expected float32 \(8, 12, 16\).*\(9, 12, 16\)"):
        _read(tmp_path / "grid")
    with pytest.raises(EmptySplitError, match="no snapshot in"):
        _read(tmp_path / "nothing")


def test_statistics_of_another_channel_set_are_refused(generated: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.h5"
    with h5py.File(path, "w", locking=False) as file:
        file["climate/stats"] = np.ones((4, 4))
    with pytest.raises(ChannelError, match=r"expected 16 rows for .* got .*'mean': 4"):
        _ready(generated, statistics=str(path))
    with h5py.File(path, "a", locking=False) as file:
        file["climate/channels"] = [0, 1, 2, 10]
    with pytest.raises(ChannelError, match=r"another channel set: expected .* without .*'UBOT'"):
        _ready(generated, statistics=str(path))
    assert _ready(generated, statistics=str(path), channels=["PRECT"]).normalization.scale == (1.0,)


def test_deepcams_own_file_and_its_lost_squares(generated: Path) -> None:
    table = deepcam_table()
    path = Path(deepcam_table.__code__.co_filename).parent / "climate_stats" / "stats.h5"
    raw = read_statistics_file(path)
    assert raw.names == CHANNELS
    assert raw.row("TMQ")["mean"] == pytest.approx(18.658855)
    # Where the square of the mean does not drown it, the spread is near that of the table.
    np.testing.assert_allclose(raw.std[:6], table.std[:6], rtol=0.03)
    assert np.isnan(raw.row("PSL")["std"])
    assert np.isfinite(table.std).all()
    with pytest.raises(UserError, match=r"PSL: zscore needs numbers .* mean square in float32"):
        _ready(generated, statistics=str(path), normalization="zscore", channels=["PSL"])
    assert _ready(generated, statistics=str(path), normalization="zscore", channels=["TMQ"])


def test_another_set_in_the_folder_is_refused(generated: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatchError, match="holds another data set"):
        _module(generated, seed=6).prepare_data()
    with pytest.raises(DataFileError, match="dataset=climate size=tiny"):
        require_finished(_FEW.writer(tmp_path), "dataset=climate size=tiny")
    with pytest.raises(UserError, match="no size 'vast'"):
        ClimateShards("vast")
    with pytest.raises(UserError, match="steps_per_sequence of 1 to 8"):
        ClimateShards("tiny", steps_per_sequence=9)


@pytest.mark.slow
def test_two_ranks_scale_alike_and_fail_alike(generated: Path, tmp_path: Path) -> None:
    data = {"size": None, "statistics": "train", "split": (1.0, 0, 0), "batch_size": 2}
    (first, seen), (second, also_seen) = run_ranks(2, set_up_climate, generated, data)
    assert first == second
    assert first["normalization"]["offset"][0] == pytest.approx(
        min(float(_FEW(index)["fields"][..., 0].min()) for index in range(16))
    )
    assert sorted(seen + also_seen) == list(range(16))
    _foreign(tmp_path, 0)
    _foreign(tmp_path, 1, channels=[1, 0, *range(2, 16)])
    messages = errors_of_ranks(2, set_up_climate, tmp_path, data)
    assert all(message.startswith("ChannelError: ") for message in messages), messages
    messages = errors_of_ranks(2, set_up_climate, generated, {**data, "statistics": "no.h5"})
    assert all("no usable statistics in no.h5" in message for message in messages), messages
