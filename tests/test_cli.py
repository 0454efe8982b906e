"""The ``gradsched`` command from outside: help, errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gradsched import cli

GRADSCHED = Path(sys.executable).parent / "gradsched"


def test_the_installed_command_lists_what_it_can_do_and_loads_no_torch() -> None:
    result = subprocess.run([GRADSCHED, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for name, summary in cli.COMMANDS.items():
        assert name in result.stdout
        assert summary in " ".join(result.stdout.split())
    code = "from lightning_gradsched import cli; cli._parser(); print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}"], capture_output=True, text=True, timeout=60
    )
    assert loaded.stdout.strip() == "False"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"gradsched {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["report", "missing.json"], "missing.json"),
        (["doctor", "--profile", "missing.json"], "missing.json"),
        (["scale", "--profile", "fc-densenet", "--network", "nowhere"], "nowhere"),
        (["scale", "--profile", "fc-densenet", "--network", "summit", "--ranks", "0..5"], "0..5"),
        (["scale", "--network", "summit", "--profile", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_named_and_exits_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gradsched {argv[0]}: ")
    assert message in err
