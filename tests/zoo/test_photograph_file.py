"""The HDF5 file: content, licences, damage, processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from zoo.data import photograph_file
from zoo.data.photograph_file import PhotographFile, ensure_photographs
from zoo.data.photograph_list import PHOTOGRAPHS, SPLITS, Photograph, names_of
from zoo.errors import DataFileError

_WINDOW = (slice(10, 14), slice(20, 25))


def test_splits_are_disjoint_in_name_and_in_pixels(photographs_path: Path) -> None:
    assert len({photograph.loader for photograph in PHOTOGRAPHS}) == len(PHOTOGRAPHS)
    assert {photograph.split for photograph in PHOTOGRAPHS} == set(SPLITS)
    with h5py.File(photographs_path, "r", locking=False) as file:
        contents = {file[f"{p.split}/{p.name}"][:].tobytes() for p in PHOTOGRAPHS}
    assert len(contents) == len(PHOTOGRAPHS)


def test_every_picture_states_licence_and_source(photographs_path: Path) -> None:
    left_out = {"moon", "page", "lfw_subset", "stereo_motorcycle"}
    assert left_out.isdisjoint(photograph.loader for photograph in PHOTOGRAPHS)
    with h5py.File(photographs_path, "r", locking=False) as file:
        for photograph in PHOTOGRAPHS:
            attributes = file[f"{photograph.split}/{photograph.name}"].attrs
            assert attributes["licence"] == photograph.licence != ""
            assert attributes["source"] == photograph.source != ""


def test_gray_pictures_have_three_equal_channels(photographs_path: Path) -> None:
    window = PhotographFile(photographs_path).read("test", "camera", *_WINDOW)
    assert window.shape == (4, 5, 3)
    assert window.dtype == np.uint8
    assert (window == window[..., :1]).all()


def test_an_existing_file_is_kept(photographs_path: Path) -> None:
    before = photographs_path.stat().st_mtime_ns
    ensure_photographs(photographs_path)
    assert photographs_path.stat().st_mtime_ns == before


def test_ranks_that_start_at_once_leave_one_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "photographs.h5"
    load = photograph_file._load

    def second_writer_in_the_midst(photograph: Photograph) -> np.ndarray:
        monkeypatch.setattr(photograph_file, "_load", load)
        ensure_photographs(path)
        return load(photograph)

    monkeypatch.setattr(photograph_file, "_load", second_writer_in_the_midst)
    ensure_photographs(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = photograph_file._load

    def fail_at_the_cat(photograph: Photograph) -> np.ndarray:
        if photograph.name == "cat":
            raise OSError("No space left on device")
        return load(photograph)

    monkeypatch.setattr(photograph_file, "_load", fail_at_the_cat)
    path = tmp_path / "photographs.h5"
    with pytest.raises(DataFileError, match=r"No space left.*data\.path=") as caught:
        ensure_photographs(path)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_by_text(path: Path) -> None:
    path.write_text("not HDF5")


def _forget_layout(path: Path) -> None:
    with h5py.File(path, "a", locking=False) as file:
        del file.attrs["layout"]


def _drop_picture(path: Path) -> None:
    with h5py.File(path, "a", locking=False) as file:
        del file["test/camera"]


def _change_type(path: Path) -> None:
    with h5py.File(path, "a", locking=False) as file:
        del file["test/camera"]
        file["test/camera"] = np.zeros((8, 8), np.float32)


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (_truncate, "truncated"),
        (_replace_by_text, "signature"),
        (_forget_layout, "layout and version"),
        (_drop_picture, "no dataset /test/camera"),
        (_change_type, r"/test/camera of float32 \(8, 8\)"),
    ],
)
def test_damage_is_named(damage, got: str, photographs_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "photographs.h5"
    path.write_bytes(photographs_path.read_bytes())
    damage(path)
    with pytest.raises(DataFileError, match=got) as caught:
        ensure_photographs(path)
    assert str(path) in str(caught.value)
    assert "delete the file" in str(caught.value)


def test_reading_a_missing_file_is_named(tmp_path: Path) -> None:
    file = PhotographFile(tmp_path / "absent.h5")
    with pytest.raises(DataFileError, match=r"absent\.h5 is not a usable file"):
        file.read("train", names_of("train")[0], *_WINDOW)


def test_the_handle_is_not_pickled(photographs_path: Path) -> None:
    file = PhotographFile(photographs_path)
    window = file.read("test", "camera", *_WINDOW)
    copy = pickle.loads(pickle.dumps(file))
    assert file._file is not None
    assert copy._file is None
    assert (copy.read("test", "camera", *_WINDOW) == window).all()


def test_a_forked_process_opens_its_own_handle(
    photographs_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PhotographFile(photographs_path)
    file.read("test", "camera", *_WINDOW)
    inherited = file._file
    monkeypatch.setattr(photograph_file.os, "getpid", lambda: -1)
    file.read("test", "camera", *_WINDOW)
    assert file._file is not inherited
