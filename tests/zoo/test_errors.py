"""How programs print the errors that a user can mend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hydra.utils import instantiate

from zoo.errors import DataFileError, UserError, user_errors


def _fail(error: Exception) -> None:
    raise error


def _exit_status(action: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as caught, user_errors():
        action()
    return caught.value.code


def test_a_user_error_is_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_status(lambda: _fail(DataFileError("x.h5 is empty"))) == 1
    assert capsys.readouterr().err == "DataFileError: x.h5 is empty\n"


def test_a_rank_gives_its_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _exit_status(lambda: _fail(UserError("no"))) == 1
    assert capsys.readouterr().err == "[rank 1] UserError: no\n"


def test_a_refused_option_names_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"net": {"_target_": "zoo.net.edsr.EDSR", "scale": 5}}
    assert _exit_status(lambda: instantiate(config)) == 1
    expected = "ValueError: in the configuration `net`: scale must be 2, 3 or 4, got 5; try scale=2"
    assert capsys.readouterr().err.strip() == expected


def test_hydras_switch_brings_the_traceback_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="no"), user_errors():
        raise UserError("no")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a mistake of ours")
