from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_gradsched.core.profile import (
    BackwardProfile,
    NetworkProfile,
    ParamProfile,
    Sample,
)
from lightning_gradsched.errors import ProfileError

BACKWARD = BackwardProfile(
    (ParamProfile("b", 8, ready_s=0.5), ParamProfile("a", 4, "bfloat16", "cuda:0", 1.5, 0.25)),
    forward_s=1.0,
    backward_s=2.0,
)
NETWORK = NetworkProfile("gloo", 6, 2, 3, (Sample("all_reduce", 1024, 1e-3),))


def test_json_round_trips() -> None:
    assert BackwardProfile.from_json(BACKWARD.to_json()) == BACKWARD
    assert NetworkProfile.from_json(NETWORK.to_json()) == NETWORK


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "got no JSON"),
        ("[1]", "with list"),
        (NETWORK.to_json(), "got kind 'network'"),
        (BACKWARD.to_json().replace('"forward_s"', '"forward_ms"'), "forward_ms"),
        (BACKWARD.to_json().replace('"ready_s"', '"ready_ms"'), "expected ParamProfile with"),
        (BACKWARD.to_json().replace("2.0", "NaN"), "expected finite numbers from 0 up, got nan"),
    ],
)
def test_what_is_no_backward_profile_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ProfileError, match=fault):
        BackwardProfile.from_json(text)


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ([ParamProfile("a", 4, ready_s=math.nan)], "a: ready_s.*got nan"),
        ([ParamProfile("a", -4)], "got -4"),
        ([ParamProfile("a", 4), ParamProfile("a", 4)], "'a' twice"),
        ([ParamProfile("a", 4, ready_s=2.0), ParamProfile("b", 4, ready_s=1.0)], "'b' ready at 1"),
    ],
)
def test_impossible_gradients_are_refused(params: list[ParamProfile], fault: str) -> None:
    with pytest.raises(ProfileError, match=fault):
        BackwardProfile(tuple(params))


def test_an_empty_ladder_is_refused() -> None:
    with pytest.raises(ProfileError, match="empty ladder"):
        NetworkProfile("gloo", 2, 1, 2, ())


@pytest.mark.parametrize("sample", [Sample("all_reduce", 8, 0.0), Sample("all_reduce", 0, 1.0)])
def test_a_collective_of_no_time_or_no_bytes_is_refused(sample: Sample) -> None:
    with pytest.raises(ProfileError, match="got 0 in"):
        NetworkProfile("gloo", 2, 1, 2, (sample,))


@pytest.mark.parametrize("counts", [(0, 1, 1), (2, 1.5, 2), (2, 1, "2")])
def test_impossible_counts_of_ranks_and_nodes_are_refused(counts: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ProfileError, match="expected whole numbers from 1 up"):
        NetworkProfile("gloo", *counts, NETWORK.samples)


def test_a_time_that_is_no_number_is_refused() -> None:
    text = NETWORK.to_json().replace("0.001", '"soon"')
    with pytest.raises(ProfileError, match="got 'soon'"):
        NetworkProfile.from_json(text)
