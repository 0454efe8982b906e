"""A calibrated network in the run folder, for the next run on the same hosts."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from lightning_gradsched.core.profile import NetworkProfile
from lightning_gradsched.errors import ProfileError
from lightning_gradsched.files import written_whole
from lightning_gradsched.runtime.topology import Place, nodes_of

OLDEST_S = 7 * 24 * 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What a measurement holds for; ``hosts``: (name, node's number, ranks) in rank order."""

    hosts: tuple[tuple[str, int, int], ...]
    backend: str
    world_size: int
    torch: str

    @classmethod
    def of(cls, places: Sequence[Place], backend: str) -> CalibrationKey:
        pairs = zip((place.host for place in places), nodes_of(places), strict=True)
        hosts = tuple((host, node, len(list(run))) for (host, node), run in groupby(pairs))
        return cls(hosts, backend, len(places), str(torch.__version__))

    def path_in(self, folder: Path) -> Path:
        """A file of its own for each key, so that runs of several sizes can share a folder."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
        return folder / f"network-{digest[:12]}.json"


def read(folder: Path, key: CalibrationKey) -> str | None:
    """The stored network as JSON; None, with a warning but where there is no file, if it won't do.

    Never raises on what a file may hold: the other ranks wait for the answer.
    """
    path = key.path_in(folder)
    try:
        age_s, network = _parse(path.read_text(), key)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        warnings.warn(
            f"{path} is not used, and the network is measured anew: {type(error).__name__}:"
            f" {error}",
            stacklevel=2,
        )
        return None
    # A clock that was set back makes a file from the future: as old as the distance.
    if abs(age_s) > OLDEST_S:
        _log.info("%s is %.0f days old: the network is measured anew", path, age_s / 86400)
        return None
    _log.info("the network is taken from %s, measured %.1f hours ago", path, age_s / 3600)
    return network.to_json()


def write(folder: Path, key: CalibrationKey, network: NetworkProfile) -> None:
    """Store ``network``; a folder that takes no file is warned of, and no more."""
    path = key.path_in(folder)
    value = {
        "kind": "calibration",
        "measured_at_s": time.time(),
        "key": asdict(key),
        "network": json.loads(network.to_json()),
    }
    try:
        with written_whole(path) as fresh:
            fresh.write_text(json.dumps(value, indent=1))
    except OSError as error:
        warnings.warn(
            f"the measured network could not be kept for the next run: {error}. Choose a folder"
            " that can be written to with calibration_dir.",
            stacklevel=2,
        )


def _parse(text: str, key: CalibrationKey) -> tuple[float, NetworkProfile]:
    """Age in seconds and the network; raises one of many errors if it is not ``key``'s."""
    value: Any = json.loads(text)
    found = value["key"]
    if value["kind"] != "calibration" or found != json.loads(json.dumps(asdict(key))):
        raise ProfileError(f"expected a calibration for {asdict(key)}, got one for {found}")
    network = NetworkProfile.from_json(json.dumps(value["network"]))
    if (network.backend, network.world_size) != (key.backend, key.world_size):
        raise ProfileError(
            f"expected {key.world_size} ranks over {key.backend}, got {network.world_size} over"
            f" {network.backend}"
        )
    return time.time() - float(value["measured_at_s"]), network
