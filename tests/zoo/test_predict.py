"""zoo.predict: masks, maps and events of files, whatever their order; broken ones are named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from zoo import predict
from zoo.callback.store_config import CONFIG_KEY
from zoo.data import climate_input
from zoo.data.climate import ClimateDataModule
from zoo.data.climate_channels import CHANNELS, CLASS_NAMES
from zoo.data.climate_cyclones import relative_vorticity
from zoo.data.climate_grid import Grid, distance_deg, regular_grid
from zoo.data.climate_input import open_snapshots
from zoo.data.climate_shards import ClimateShards
from zoo.errors import ChannelError, CheckpointError, DataFileError, GridError, UserError
from zoo.model.segmentation import Segmentation
from zoo.report.climate_events import events_of
from zoo.runtime import CONFIG_DIR

_FILES = Path(__file__).parent / "files" / "climate"
_SHAPE = (96, 144)
_NET_CHANNELS = ["TMQ", "PSL", "V850"]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    ClimateShards("tiny", seed=0, n_samples=4, steps_per_sequence=2).generate(folder)
    return folder


@pytest.fixture(scope="module")
def trained(
    snapshots: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Segmentation, ClimateDataModule]:
    """A checkpoint as `zoo.train` writes one, of a network that has not learned."""
    folder = tmp_path_factory.mktemp("trained")
    channels = ",".join(_NET_CHANNELS)
    overrides = [
        "experiment=climate_tiny",
        f"net.in_channels={len(_NET_CHANNELS)}",
        f"data.path={snapshots}",
        f"data.channels=[{channels}]",
        "data.n_samples=4",
        "data.steps_per_sequence=2",
        "data.split=[1.0,0.0,0.0]",
    ]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        config = OmegaConf.create(
            {key: OmegaConf.to_container(config[key], resolve=True) for key in ("model", "data")}
        )
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    torch.manual_seed(0)
    model, data = instantiate(config.model), instantiate(config.data)
    data.setup("fit")
    path = folder / "best.ckpt"
    checkpoint = {
        "state_dict": model.state_dict(),
        CONFIG_KEY: OmegaConf.to_yaml(config),
        "ClimateDataModule": data.state_dict(),
    }
    torch.save(checkpoint, path)
    return path, model.eval(), data


@pytest.fixture
def run(program: Callable[..., Path], trained: Any) -> Callable[..., Path]:
    def run(name: str, *overrides: str) -> Path:
        return program(
            predict.main, name, f"checkpoint={trained[0]}", "accelerator=cpu", *overrides
        )

    return run


def _expected(trained: Any, index: int) -> np.ndarray:
    _, model, data = trained
    with torch.inference_mode():
        return model.predict(data.samples["train"][index].fields[None])[0].numpy()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_masks_maps_and_events_of_files(run: Any, trained: Any, snapshots: Path) -> None:
    folder = run("all", f"files=[{snapshots}/data-2000-01-01-*.h5]", "n_drawn=1")
    for index, name in enumerate(("data-2000-01-01-00-0", "data-2000-01-01-01-0")):
        with h5py.File(folder / "masks" / f"{name}.h5", locking=False) as file:
            np.testing.assert_array_equal(file["mask"][0], _expected(trained, index))
            assert [file["mask"].dims[axis].label or "" for axis in range(3)] == ["", "", ""]
            assert file["mask"].dims[1][0].name == "/latitude"
            np.testing.assert_allclose(file["latitude"], np.linspace(-90, 90, 96))
            assert file["mask"].attrs["flag_meanings"] == " ".join(CLASS_NAMES)
        assert (folder / "maps" / f"{name}.png").stat().st_size > 10_000
    events = _rows(folder / "events.csv")
    n_pixels = sum(int(event["n_pixels"]) for event in events)
    assert n_pixels == sum(int((_expected(trained, index) > 0).sum()) for index in (0, 1)) > 0
    assert {event["event"] for event in events} <= set(CLASS_NAMES[1:])


def test_broken_files_are_named_at_the_end(
    run: Any, snapshots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = snapshots / "data-2000-01-02-00-0.h5"
    bad = {name: tmp_path / f"{name}.h5" for name in ("nan", "lacking", "grid", "text", "many")}
    with h5py.File(good, locking=False) as file:
        data = file["climate/data"][()]
    with_nan = data.copy()
    with_nan[5, 5, CHANNELS.index("PSL")] = np.nan
    for name, values in (("nan", with_nan), ("grid", data[:64]), ("lacking", data[..., :3])):
        with h5py.File(bad[name], "w", locking=False) as file:
            file["climate/data"] = values
            if name == "lacking":
                file["climate/channels"] = ["TMQ", "U850", "V850"]
    bad["text"].write_text("no HDF5")
    names = ",".join(str(bad[name]) for name in ("nan", "lacking", "grid", "text", "many"))
    with pytest.raises(SystemExit) as stopped:
        run("some", f"files=[{names},{good}]", "n_drawn=0")
    assert stopped.value.code == 1
    output = capsys.readouterr()
    assert "1 files: " in output.out
    assert "5 of 6 files could not be used" in output.err
    for kind, name, text in (
        ("BadSampleError", "nan", "PSL expected finite numbers, got 1 NaN"),
        ("ChannelError", "lacking", "without ['PSL'] in ['TMQ', 'U850', 'V850']"),
        ("GridError", "grid", "expected the grid of training, (96, 144), got (64, 144)"),
        ("DataFileError", "text", "Expected an HDF5 file"),
        ("DataFileError", "many", "no data file"),
    ):
        line = next(
            each for each in output.err.splitlines() if f"{kind}: " in each and text in each
        )
        assert str(bad[name]) in line
    assert [path.name for path in (tmp_path / "some" / "masks").iterdir()] == [f"{good.stem}.h5"]


def test_channels_in_another_order_are_read_by_name(
    run: Any, trained: Any, snapshots: Path, tmp_path: Path
) -> None:
    with h5py.File(snapshots / "data-2000-01-02-00-0.h5", locking=False) as file:
        data = file["climate/data"][()]
    order = [CHANNELS.index(name) for name in ("V850", "TMQ", "PSL")]
    with h5py.File(tmp_path / "turned.h5", "w", locking=False) as file:
        # From north to south, and many snapshots in a file.
        file["climate/data"] = np.stack([data[::-1, :, order]] * 2)
        file["climate/channels"] = order
        file["climate/latitude"] = np.linspace(90, -90, 96)
        file["climate/longitude"] = np.arange(144) * 2.5
    folder = run("turned", f"files=[{tmp_path}/turned.h5]", "n_drawn=0")
    with h5py.File(folder / "masks" / "turned.h5", locking=False) as file:
        assert file["mask"].shape == (2, *_SHAPE)
        np.testing.assert_array_equal(file["mask"][1], _expected(trained, 2))


def test_netcdf_in_and_out(run: Any, trained: Any, snapshots: Path, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    with h5py.File(snapshots / "data-2000-01-01-01-0.h5", locking=False) as file:
        data = file["climate/data"][()]
    # From north to south, from 180 degrees west, and under the names of another model.
    turned = np.roll(data[::-1], 72, axis=1)
    axes = ("time", "latitude", "longitude")
    names = {"tcwv": "TMQ", "msl": "PSL", "v": "V850"}
    fields = {name: turned[None, ..., CHANNELS.index(channel)] for name, channel in names.items()}
    fields["v"] = np.stack([fields["v"] * 0, fields["v"]], axis=1)
    dataset = xarray.Dataset(
        {"tcwv": (axes, fields["tcwv"]), "msl": (axes, fields["msl"])}
        | {"v": (("time", "level", "latitude", "longitude"), fields["v"])},
        {
            "time": np.array(["2007-01-01T06:00"], dtype="datetime64[ns]"),
            "level": [500, 850],
            "latitude": np.linspace(90, -90, 96),
            "longitude": np.arange(144) * 2.5 - 180.0,
        },
    )
    dataset.to_netcdf(tmp_path / "era.nc")
    folder = run(
        "netcdf",
        f"files=[{tmp_path}/era.nc]",
        "variables={TMQ: tcwv, PSL: msl, V850: v@850}",
        "format=nc",
    )
    with xarray.open_dataset(folder / "masks" / "era.nc") as mask:
        np.testing.assert_array_equal(mask["mask"].values[0], _expected(trained, 1))
        assert mask["mask"].dims == axes
        assert mask["longitude"].values[0] == 0.0
    assert _rows(folder / "events.csv")[0]["time"] == "2007-01-01T06:00:00"


def test_real_fields_are_read_as_they_are() -> None:
    """ECMWF's temperature and wind, of which 850 hPa is the second level."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    path = _FILES / "tuv_pl.nc"
    with xarray.open_dataset(path) as raw:
        expected = raw["u"].sel(level=850).values[0]
    variables = {"U850": "u@850", "V850": "v@850", "T500": "t@500"}
    with open_snapshots(path, variables) as snapshots:
        fields = snapshots.read(0, list(variables))
        grid = snapshots.grid
        with pytest.raises(ChannelError, match=r"without \['TMQ'\] in"):
            snapshots.read(0, ["TMQ"])
        with pytest.raises(DataFileError, match=r"choose a level: variables={t: t@LEVEL}"):
            snapshots.read(0, ["t"])
    np.testing.assert_array_equal(fields["U850"], expected[::-1].astype(np.float32))
    assert grid.latitude_deg.tolist() == [-90, -60, -30, 0, 30, 60, 90]
    # Westerlies and cold poles.
    assert fields["U850"][[1, 5]].mean() > 0.0
    assert fields["T500"][3].mean() > fields["T500"][[0, -1]].mean() + 20.0
    assert np.abs(relative_vorticity(fields["U850"], fields["V850"], grid)).max() < 1e-4
    with pytest.raises(ChannelError, match=r"no level 925, but {'level': \[1000"):
        open_snapshots(path, {"U": "u@925"})


def test_sea_surface_temperature_has_holes_over_land(run: Any, capsys: Any) -> None:
    pytest.importorskip("netCDF4")
    path = _FILES / "ersst_2015.nc"
    with open_snapshots(path) as snapshots:
        assert len(snapshots.times) == 2
        assert snapshots.grid.shape == (89, 180)
        sst = snapshots.read(1, ["sst"])["sst"]
    assert 0.2 < np.isnan(sst).mean() < 0.5
    variables = "variables={TMQ: sst, PSL: sst, V850: sst}"
    with pytest.raises(SystemExit):
        run("sst", f"files=[{path}]", variables, "any_grid=true")
    assert "TMQ expected finite numbers, got" in capsys.readouterr().err


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(UserError, match=r"needs the packages xarray and netCDF4.*'\.\[climate\]'"):
        open_snapshots(tmp_path / "a.nc")


def test_checkpoints_of_other_tasks_and_no_files_are_named(
    program: Callable[..., Path], trained: Any, tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, CONFIG_KEY: "model: {}"}, other)
    for overrides, text in (
        ((f"checkpoint={other}", "files=[a.h5]"), "was not trained on climate snapshots"),
        ((f"checkpoint={trained[0]}",), "no files given"),
        (("files=[a.h5]",), "no checkpoint given"),
        ((f"checkpoint={trained[0]}", "files=[a.h5]", "format=png"), "expected h5 or nc"),
    ):
        with pytest.raises(SystemExit):
            program(predict.main, "run", *overrides)
        assert text in capsys.readouterr().err


def test_events_are_measured_on_the_sphere() -> None:
    grid = regular_grid(181, 360)
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[120:145, 358:] = mask[120:145, :2] = 2
    mask[100:103, 50:53] = 1
    fields = {name: np.zeros(grid.shape, np.float32) for name in ("U850", "V850")}
    fields["U850"][101, 51], fields["V850"][101, 51] = 30.0, -40.0
    fields["PSL"] = np.full(grid.shape, 1e5, np.float32)
    fields["PSL"][101, 52] = 97000.0
    cyclone, river = events_of(mask, grid, CLASS_NAMES, fields, "a.h5", "0")
    assert (cyclone.event, river.event) == CLASS_NAMES[1:]
    assert (cyclone.latitude_deg, cyclone.longitude_deg) == pytest.approx((11.0, 51.0), abs=0.01)
    assert (cyclone.max_wind_m_s, cyclone.min_pressure_pa) == (50.0, 97000.0)
    assert np.isnan(cyclone.length_km)
    assert np.isnan(river.max_tmq_kg_m2)
    # Its columns are 358 .. 1 degrees.
    assert min(river.longitude_deg, 360.0 - river.longitude_deg) < 0.6
    corners = distance_deg(30.0, 358.0, 54.0, 1.0) * np.pi / 180.0 * 6371.0
    assert river.length_km == pytest.approx(corners)
    assert river.width_km == pytest.approx(river.area_km2 / river.length_km)


def test_regions_over_the_prime_meridian_keep_their_order() -> None:
    oriented = climate_input._Oriented(np.linspace(60, 30, 7), np.arange(-20.0, 21.0, 5.0))
    assert oriented.grid.longitude_deg[0] == pytest.approx(340.0)
    assert (np.diff(oriented.grid.longitude_deg) > 0).all()
    assert not oriented.grid.is_periodic
    field = np.arange(63.0).reshape(7, 9)
    np.testing.assert_array_equal(oriented(field), field[::-1])
    with pytest.raises(GridError, match="even steps"):
        Grid(np.array([0.0, 1.0, 2.0, 30.0]), np.arange(4.0))


def test_other_channels_than_the_checkpoints(trained: Any, snapshots: Path) -> None:
    checkpoint = torch.load(trained[0], weights_only=True)
    module = ClimateDataModule(
        str(snapshots), "tiny", n_samples=4, steps_per_sequence=2, channels=["TMQ"]
    )
    with pytest.raises(CheckpointError, match=r"other channels: expected \['TMQ', 'PSL', 'V850'\]"):
        module.load_state_dict(checkpoint["ClimateDataModule"])
