"""The claims on partial differential equations, measured on a problem that takes no time."""

from __future__ import annotations

import pytest

from zoo.claim import inverse_pde
from zoo.claim.burgers import CLAIM as BURGERS
from zoo.claim.heat import CLAIM as HEAT
from zoo.claim.inverse_pde import Setting
from zoo.claim.navier_stokes import CLAIM as NAVIER_STOKES
from zoo.physics.heat import Heat


def _setting(*kinds: str) -> Setting:
    return Setting(
        Heat(4, n_modes=3, n_sensors=4, deviation=0.3),
        kinds=kinds,
        sizes=(1, 100),
        n_seeds=1,
        n_steps=1,
        n_test=4,
        samples_a_step=100,
        n_iterations=6,
        iterations_a_step=3,
    )


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.parametrize(
    ("claim", "kinds"),
    [(HEAT, ("pop", "opo", "taen")), (NAVIER_STOKES, ("naive", "model_constrained", "tnet"))],
    ids=["heat", "navier_stokes"],
)
def test_runs_become_checks_a_table_and_a_picture(claim, kinds: tuple[str, ...]) -> None:
    shares: list[float] = []
    measured = inverse_pde.measure(_setting(*kinds), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(measured["runs"]) == 2 * len(kinds)
    tikhonov = measured["tikhonov"]
    assert 0.0 < tikhonov < 1.0
    ratio = inverse_pde.errors(measured, kinds[-1], 100)[0] / tikhonov
    checks = claim.checks(measured)
    assert checks[1].measured == f"{ratio:.3g}"
    rows = claim.table(measured)
    assert all(len(row) == len(rows.header) for row in rows.rows)
    assert ("forward, 1" in rows.header) == ("pop" in kinds)
    assert claim.plot(measured).axes


def test_numbers_are_those_of_the_seed() -> None:
    first, again = (inverse_pde.measure(_setting("taen"), lambda _: None) for _ in range(2))
    assert first == again


def test_burgers_is_asked_for_where_it_is_smooth_enough() -> None:
    def part(tnet: float) -> dict:
        runs = [
            {"kind": kind, "n_train": n, "seed": seed, "error": error + 0.01 * (seed - 0.5)}
            for kind, error in (("naive", 0.9), ("model_constrained", 0.3), ("tnet", tnet))
            for n in (1, 100)
            for seed in (0, 1)
        ]
        return {"seeds": [0, 1], "tikhonov": 0.2, "runs": runs}

    parts = {"0.01": part(0.2), "0.02": part(0.23), "0.1": part(0.8)}
    measured = {"seeds": [0, 1], "amplitudes": parts}
    found = {check.asked: (check.measured, check.holds) for check in BURGERS.checks(measured)}
    what = "100 samples: error of TNet / Tikhonov ≤ 1.1"
    assert found[f"amplitude 0.01, {what}"] == ("1", True)
    assert found[f"amplitude 0.02, {what}"] == ("1.15", False)
    assert f"amplitude 0.1, {what}" not in found
    assert found["amplitude 0.1, 1 sample: error of nDNN / Tikhonov ≥ 2"] == ("4.5", True)
    rows = BURGERS.table(measured)
    assert all(len(row) == len(rows.header) for row in rows.rows)
    assert rows.rows[-1][-1] == "4 ± 0.035"
    assert len(BURGERS.plot(measured).axes) == 2
