"""`gradsched scale` for each mode, and two steps in a row."""

from __future__ import annotations

import doctest
import json
from itertools import pairwise
from pathlib import Path

import pytest

import lightning_gradsched.core.sharded_step as sharded_module
import lightning_gradsched.core.two_steps as two_steps_module
from lightning_gradsched.core.cost import AlphaBeta
from lightning_gradsched.core.networks import NETWORKS
from lightning_gradsched.core.plan import per_tensor, single
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.published import DEEPCAM_SAMPLE_S, deepcam
from lightning_gradsched.core.report import step_s_of
from lightning_gradsched.core.scale import MODES, Scenario
from lightning_gradsched.core.sharded_step import simulate_sharded
from lightning_gradsched.core.timeline import COMPUTE
from lightning_gradsched.core.two_steps import two_steps
from lightning_gradsched.errors import GradSchedError
from tests.core.test_scale import run

DEEPCAM = ("--profile", "deepcam", "--network", "summit", "--ranks", "512,2048")


@pytest.mark.parametrize("module", [sharded_module, two_steps_module])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


PROFILE = BackwardProfile(
    (
        ParamProfile("head", 1000, ready_s=1.0, needed_s=2.0),
        ParamProfile("middle", 1000, ready_s=2.0, needed_s=1.0),
        ParamProfile("stem", 1000, ready_s=3.0, needed_s=0.0),
    ),
    forward_s=3.0,
    backward_s=3.0,
)


@pytest.mark.parametrize(
    ("message_s", "step_s"),
    [
        (0.0, 6.0),
        # The last gradient, then the first weights: what follows is hidden.
        (1.0, 3.0 + 1.0 + 0.5 + 3.0),
        # Nothing is hidden but two gradients less a second, and a forward between weights.
        (4.0, 1.0 + 3 * 4.0 + 3 * 2.0 + 1.0),
    ],
)
def test_a_sharded_step_by_hand(message_s: float, step_s: float) -> None:
    cost = AlphaBeta(0.0, message_s / 1000)
    step = simulate_sharded(per_tensor(PROFILE, cost), PROFILE, cost)
    assert step.extent_s() == pytest.approx(step_s)
    assert step_s_of(step) == pytest.approx(step_s)


def test_shards_send_half_as_many_bytes_again() -> None:
    cost = AlphaBeta(0.0, 1e-3)
    sent = simulate_sharded(per_tensor(PROFILE, cost), PROFILE, cost).transfers()
    gathered = sum(span.length_s for label, span in sent.items() if label.startswith("weights"))
    assert gathered == pytest.approx(0.5 * 3)


@pytest.mark.parametrize("mode", MODES)
def test_the_second_step_is_the_first_a_step_later(mode: str) -> None:
    scenario = Scenario(deepcam().profile, NETWORKS["summit"], mode=mode)
    step = scenario.timeline(2048, "none")
    both = two_steps(step)
    period_s = step_s_of(step)
    sent = both.own_transfers()
    firsts = [label for label in sent if not label.endswith("'")]
    assert len(sent) == 2 * len(firsts) == 2 * len(step.own_transfers())
    for label in firsts:
        ends_s = [piece.end_s for piece in sent[label]]
        assert [p.end_s - period_s for p in sent[f"{label}'"]] == pytest.approx(ends_s)
    computed = sorted((s for s in both.spans if s.track == COMPUTE), key=lambda s: s.start_s)
    for one, next_one in pairwise(computed):
        assert next_one.start_s >= one.end_s - 1e-12, "nothing is computed twice"
    assert {"backward k", "backward k+1", "forward k+1"} <= {span.label for span in computed}


@pytest.mark.parametrize("mode", MODES)
def test_two_steps_show_each_wait(mode: str) -> None:
    """With lag three: the first backward ends with a wait for the step that is not shown."""
    slow = Scenario(deepcam().profile, NETWORKS["ethernet-10g"], mode=mode).timeline(64, "none")
    assert slow.exposed_s() > 0
    n_waits = 3 if mode == "gradient_lag" else 2
    assert two_steps(slow).exposed_s() == pytest.approx(n_waits * slow.exposed_s())


@pytest.mark.parametrize("mode", ["overlap_forward", "gradient_lag"])
def test_reductions_of_a_step_go_on_in_the_next_forward(mode: str) -> None:
    both = two_steps(
        Scenario(deepcam().profile, NETWORKS["summit"], mode=mode).timeline(512, "none")
    )
    (forward,) = (span for span in both.spans if span.label == "forward k+1")
    own = both.own_transfers()
    assert any(
        forward.start_s < piece.end_s and piece.start_s < forward.end_s
        for label, pieces in own.items()
        for piece in pieces
        if not label.endswith("'")
    )


def test_deepcams_numbers_are_those_of_its_sources() -> None:
    published = deepcam()
    assert sum(param.nbytes for param in published.profile.params) == 4 * 56_454_720
    assert published.profile.forward_s + published.profile.backward_s == pytest.approx(
        DEEPCAM_SAMPLE_S
    )
    # What is derived gives the two published rates back.
    rest_s = 1 / 21.0 - DEEPCAM_SAMPLE_S
    assert 2 / (2 * DEEPCAM_SAMPLE_S + rest_s) == pytest.approx(27.7)
    assert published.points[0].efficiency == pytest.approx(0.516, abs=5e-4)


def test_one_bucket_after_backward_is_as_slow_as_was_published() -> None:
    """As the submissions ran; on other links: to within four points, which is no confirmation."""
    scenario = Scenario(deepcam().profile, NETWORKS["summit"], planner=single)
    assert scenario.at(2048, "none").efficiency == pytest.approx(0.516, abs=0.04)


def test_all_modes_are_columns_of_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, picture = tmp_path / "scale.json", tmp_path / "scale.png"
    flags = ("--control", "none", "--json", str(table), "--png", str(picture))
    assert run(*DEEPCAM, "--mode", "all", *flags) == 0
    printed = capsys.readouterr().out
    assert all(mode in printed.splitlines()[1] for mode in MODES)
    assert "0.516" in printed
    points = json.loads(table.read_text())["points"]
    assert [(point["n_ranks"], point["mode"]) for point in points] == [
        (n_ranks, mode) for n_ranks in (512, 2048) for mode in MODES
    ]
    by_mode = {point["mode"]: point["efficiency"] for point in points[len(MODES) :]}
    assert by_mode["gradient_lag"] > by_mode["overlap_forward"] > by_mode["backward"]
    assert by_mode["backward"] > by_mode["shard_optimizer"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_several_modes_have_a_table_for_each_control_plane(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*DEEPCAM, "--mode", "backward", "gradient_lag") == 0
    printed = capsys.readouterr().out
    assert printed.count("by mode, control plane") == 4
    assert "overlap_forward" not in printed


def test_two_steps_are_drawn_by_mode(tmp_path: Path) -> None:
    page, picture = tmp_path / "steps.html", tmp_path / "steps.png"
    flags = ("--control", "none", "--mode", "overlap_forward", "gradient_lag", "--timeline")
    for path in (page, picture):
        assert run(*DEEPCAM, *flags, str(path)) == 0
    text = page.read_text()
    for title in ("overlap_forward, two steps", "gradient_lag, two steps", "2,048 ranks"):
        assert title in text
    assert "backward k+1" in text
    assert "<script" not in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [page, picture]


def test_a_timeline_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradSchedError, match=r"expected a timeline's path to end in .html or .png"):
        run(*DEEPCAM, "--timeline", str(tmp_path / "steps.svg"))
