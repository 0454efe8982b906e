"""zoo.reproduce: what is kept, what fails, what the page says; by claims measured at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from zoo import reproduce
from zoo.claim.claim import Claim, Rows, at_most, mean_and_spread

_ROOT = Path(__file__).parents[2]


def _claim(name: str, value: float, calls: list[str]) -> Claim:
    def measure(small: bool, advance) -> dict:
        calls.append(name)
        advance(1.0)
        return {"seeds": [0, 1], "value": value}

    return Claim(
        name=name,
        title=f"Title of {name}",
        source="a paper",
        published="nothing",
        experiments=("python -m zoo.train experiment=deconvolution",),
        measure=measure,
        checks=lambda measured: [at_most("value", measured["value"], 1.0)],
        table=lambda measured: Rows(["what", "value"], [["value", str(measured["value"])]]),
        plot=lambda measured: Figure(figsize=(1, 1)),
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    claims = (_claim("good", 0.5, calls), _claim("bad", 2.0, calls))
    monkeypatch.setattr(reproduce, "CLAIMS", claims)
    return calls


def _run(folder: Path, *options: str) -> int:
    places = ("--results", str(folder / "claims.json"), "--docs", str(folder))
    return reproduce.main([*options, *places])


def test_a_tolerance_that_fails_is_the_exit_status(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, "--only", "good") == 0
    assert _run(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "holds  good: value ≤ 1: 0.5" in printed
    assert "FAILS  bad: value ≤ 1: 2" in printed


def test_what_was_measured_is_kept(calls: list[str], tmp_path: Path) -> None:
    _run(tmp_path, "--only", "good")
    _run(tmp_path)
    assert calls == ["good", "bad"]
    _run(tmp_path, "--only", "bad", "--again")
    assert calls == ["good", "bad", "bad"]
    assert set(json.loads((tmp_path / "claims.json").read_text())) == {"good", "bad"}


def test_the_page_has_claims_tables_and_pictures(calls: list[str], tmp_path: Path) -> None:
    _run(tmp_path, "--small")
    page = (tmp_path / "claims.md").read_text()
    assert "| value ≤ 1 | 2 | **no** |" in page
    assert "python -m zoo.reproduce --only good --again --small" in page
    assert "short form, 2 seeds (0 to 1)" in page
    assert (tmp_path / "images" / "claim_good.png").stat().st_size > 0


def test_a_damaged_results_file_is_named(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "claims.json").write_text('{"good": {')
    with pytest.raises(SystemExit):
        _run(tmp_path)
    assert "holds no results of this program" in capsys.readouterr().err
    assert not calls


def test_an_unknown_claim_lists_the_known(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(tmp_path, "--only", "nope")
    assert "good" in capsys.readouterr().err


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, 2.0**0.5))


def test_every_claim_has_a_section_in_the_published_results() -> None:
    """What docs/claims.md shows was measured by claims that are still here."""
    results = reproduce.read_results(_ROOT / "benchmarks" / "results" / "claims.json")
    assert set(results) <= {claim.name for claim in reproduce.CLAIMS}
    page = (_ROOT / "docs" / "claims.md").read_text()
    for claim in reproduce.CLAIMS:
        assert (f'<a id="{claim.name}"></a>' in page) == (claim.name in results)
        for check in claim.checks(results[claim.name]["measured"]) if claim.name in results else []:
            assert f"| {check.asked} | {check.measured} |" in page
