"""Calibration on simulated links, for the budget; on real ranks, for agreement and the file."""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.cost import AlphaBeta, fit_all_reduce
from lightning_gradsched.core.profile import NetworkProfile, Sample
from lightning_gradsched.runtime import calibration
from lightning_gradsched.runtime.calibration import (
    LADDER_NBYTES,
    calibrate,
    cost_of,
)
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.topology import Place
from tests.parity.nets import Residual
from tests.ranks import run_ranks


class Link:
    """Collectives that take ``alpha + beta * nbytes`` on a clock of their own."""

    backend = "simulated"
    rank = 0

    def __init__(
        self, n_ranks: int, alpha_s: float, gbit_per_s: float, odd_nbytes: Sequence[int] = ()
    ) -> None:
        self.world_size = n_ranks
        self.alpha_s = alpha_s
        self.beta_s_per_byte = 2 * (n_ranks - 1) / n_ranks * 8e-9 / gbit_per_s
        self.odd_nbytes = odd_nbytes
        self.now_s = 50.0

    def all_reduce_s(self, nbytes: int) -> float:
        odd = 3.0 if nbytes in self.odd_nbytes else 1.0
        return odd * (self.alpha_s + self.beta_s_per_byte * nbytes)

    def time_all_reduce(self, nbytes: int, repeats: int) -> list[float]:
        # Before each repeat the ranks wait for one another.
        self.now_s += repeats * (self.alpha_s + self.all_reduce_s(nbytes))
        return [self.all_reduce_s(nbytes)] * repeats

    def max(self, values: Sequence[int]) -> list[int]:
        self.now_s += self.alpha_s
        return list(values)

    def median(self, values: Sequence[float]) -> list[float]:
        self.now_s += self.alpha_s
        return list(values)


def simulated(link: Link) -> tuple[NetworkProfile, float]:
    """The profile, and the seconds that it took on the link's clock."""
    places = [Place("a")] * link.world_size
    network = calibrate(link, places, now=lambda: link.now_s)  # type: ignore[arg-type]
    return network, link.now_s - 50.0


@pytest.mark.parametrize(
    ("link", "most_s"),
    [
        (Link(2, 5e-6, 1000.0), 1.0),  # memory
        (Link(2, 2e-4, 10.0), 1.0),
        (Link(27, 3e-3, 10.0), 1.0),
        (Link(2, 3e-4, 1.0), 1.0),
        (Link(27, 5e-3, 1.0), 1.0),
        (Link(2, 5e-4, 0.1), 5.0),
        (Link(4, 1e-3, 0.1), 5.0),
        (Link(27, 1e-2, 0.1), 5.0),
        (Link(27, 5e-2, 0.1), 5.0),
        (Link(27, 2e-1, 0.1), 5.0),
        (Link(27, 5e-2, 1000.0), 5.0),  # nothing but latency, at any size
    ],
)
def test_it_ends_in_time_and_finds_latency_and_bandwidth(link: Link, most_s: float) -> None:
    network, took_s = simulated(link)
    assert took_s <= most_s
    fit = fit_all_reduce(network)
    assert fit.is_good
    assert isinstance(fit.model, AlphaBeta)
    assert fit.model.alpha_s == pytest.approx(link.alpha_s, rel=1e-3)
    assert fit.model.beta_s_per_byte == pytest.approx(link.beta_s_per_byte, rel=1e-3)


class UnderWay:
    """A network that has no bytes to move, and counts the all-reduces that are under way."""

    world_size = 1

    def __init__(self) -> None:
        self.now = self.most = self.total = 0

    def all_reduce(self, flat: Tensor) -> UnderWay:
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)
        return self

    def wait(self) -> None:
        self.now -= 1


def timed_together(rank: int, nbytes: int) -> tuple[int, int, int]:
    collectives, network = Collectives(None, torch.device("cpu"), 20.0), UnderWay()
    seconds = collectives.time_all_reduce(nbytes, 3, network)
    collectives.close()
    return network.most, network.total, len(seconds)


@pytest.mark.parametrize(
    ("nbytes", "n_together"), [(2**10, 4), (2**18, 4), (2**20, 2), (2**22, 1), (2**26, 1)]
)
def test_short_messages_are_timed_as_they_follow_one_another(nbytes: int, n_together: int) -> None:
    assert run_ranks(1, timed_together, nbytes) == [(n_together, 3 * n_together, 3)]


@pytest.mark.parametrize("gbit_per_s", [0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("n_ranks", [2, 27])
def test_the_ladder_reaches_sizes_at_which_bandwidth_is_measured(
    n_ranks: int, gbit_per_s: float
) -> None:
    link = Link(n_ranks, 2e-4 * (n_ranks - 1), gbit_per_s)
    network, _ = simulated(link)
    largest = max(sample.nbytes for sample in network.samples)
    ends = largest == LADDER_NBYTES[-1]
    assert ends or link.beta_s_per_byte * largest >= 0.8 * link.all_reduce_s(largest)
    assert largest >= calibration.BANDWIDTH_NBYTES
    repeats = [sample.nbytes for sample in network.samples].count(largest)
    assert repeats >= calibration.MIN_REPEATS


def test_one_odd_size_does_not_fool_it() -> None:
    link = Link(4, 3e-4, 1.0, odd_nbytes=[LADDER_NBYTES[3]])
    fit = fit_all_reduce(simulated(link)[0])
    assert fit.is_good
    assert fit.odd_nbytes == (LADDER_NBYTES[3],)
    assert fit.model.all_reduce_s(1e6) == pytest.approx(link.all_reduce_s(1_000_000), rel=1e-3)


def test_ranks_of_unequal_nodes_are_counted() -> None:
    link = Link(5, 1e-4, 1.0)
    places = [Place("box", "slurm", node) for node in ("n1", "n1", "n1", "n2", "n2")]
    network = calibrate(link, places, now=lambda: link.now_s)  # type: ignore[arg-type]
    assert (network.n_nodes, network.ranks_per_node) == (2, 3)


KINKED = NetworkProfile(
    "gloo",
    2,
    1,
    2,
    tuple(Sample("all_reduce", n, s) for n, s in [(1, 1.0), (10, 1.0), (100, 9.0), (1000, 9.5)]),
)


def test_a_bad_fit_is_warned_of_once_by_rank_0_with_its_numbers() -> None:
    with pytest.warns(UserWarning, match=r"off by \d+% at \d+ bytes.*interpolated"):
        cost = cost_of(KINKED, warns=True)
    assert cost.all_reduce_s(100.0) == 9.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost_of(KINKED, warns=False) == cost


def profile_twice(
    rank: int, folder: str, between: Callable[[Path], None], everywhere: bool
) -> dict[str, Any]:
    """Two runs of an engine that plans; ``between`` does something to the folder, on rank 0."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("lightning_gradsched")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    config = GradSchedConfig(
        planner="optimal", calibration_dir=folder if everywhere or rank == 0 else None
    )
    networks = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            scheduler = GradientScheduler(Residual(), config)
            networks.append(scheduler.network)
            scheduler.detach()
            if rank == 0 and not networks[1:]:
                between(Path(folder))
    # Of a fit that is bad by chance this is not about.
    warned = [
        str(w.message) for w in caught if "no latency and bandwidth fit" not in str(w.message)
    ]
    return {"networks": networks, "said": said, "warned": warned}


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_second_run_takes_the_first_ones_network_on_all_ranks(
    tmp_path: Path, everywhere: bool
) -> None:
    folder = tmp_path / "made" / "gradsched"
    ranks = run_ranks(2, profile_twice, str(folder), nothing, everywhere)
    for seen in ranks:
        assert seen["networks"][0] == seen["networks"][1] == ranks[0]["networks"][0]
        assert seen["warned"] == []
    (path,) = folder.iterdir()
    assert len(ranks[0]["said"]) == 1
    assert f"the network is taken from {path}, measured 0.0 hours ago" in ranks[0]["said"][0]
    assert ranks[1]["said"] == []


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (path,) = folder.iterdir()
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def truncate(folder: Path) -> None:
    (path,) = folder.iterdir()
    path.write_text(path.read_text()[:100])


def foreign(folder: Path) -> None:
    _edit(folder, lambda value: value["key"].update(world_size=64))


def without_samples(folder: Path) -> None:
    _edit(folder, lambda value: value["network"].update(samples=[]))


def not_a_number(folder: Path) -> None:
    _edit(folder, lambda value: value["network"]["samples"][0].update(seconds=float("nan")))


def another_shape(folder: Path) -> None:
    (path,) = folder.iterdir()
    path.write_text("[1, 2]")


@pytest.mark.parametrize(
    ("between", "fault"),
    [
        (truncate, "JSONDecodeError"),
        (foreign, "got one for .*'world_size': 64"),
        (without_samples, "got an empty ladder"),
        (not_a_number, "got nan"),
        (another_shape, "TypeError"),
    ],
)
def test_a_file_that_is_no_good_is_named_and_the_network_measured_anew(
    tmp_path: Path, between: Callable[[Path], None], fault: str
) -> None:
    first, second = run_ranks(2, profile_twice, str(tmp_path), between, True)
    (path,) = tmp_path.iterdir()
    (message,) = first["warned"]
    assert message.startswith(f"{path} is not used, and the network is measured anew: ")
    assert re.search(fault, message)
    assert second["warned"] == []
    assert first["networks"] == second["networks"]
    assert first["networks"][0] != first["networks"][1]
    stored = NetworkProfile.from_json(json.dumps(json.loads(path.read_text())["network"]))
    assert stored == first["networks"][1], "and the good one written"


def make_old(folder: Path) -> None:
    _edit(folder, lambda value: value.update(measured_at_s=time.time() - 8 * 86400))


def test_a_network_measured_more_than_a_week_ago_is_measured_anew(tmp_path: Path) -> None:
    first, _ = run_ranks(2, profile_twice, str(tmp_path), make_old, True)
    assert first["networks"][0] != first["networks"][1]
    assert first["warned"] == []
    assert "is 8 days old: the network is measured anew" in first["said"][0]


def test_a_folder_that_takes_no_file_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    first, second = run_ranks(2, profile_twice, str(tmp_path / "file"), nothing, True)
    assert any("could not be kept for the next run" in message for message in first["warned"])
    assert second["warned"] == []
    assert first["networks"] == second["networks"]
