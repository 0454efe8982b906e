"""`gradsched scale`: one rank's step carried to many, as a table, JSON and a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from lightning_gradsched.core.control_plane import CONTROL_PLANES, ControlCosts
from lightning_gradsched.core.networks import NETWORKS, network_named
from lightning_gradsched.core.plan import (
    DDP_CAP_NBYTES,
    PLANNER_NAMES,
    planner_named,
)
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.published import PUBLISHED, Point, published_named
from lightning_gradsched.core.scale import (
    ALGORITHM_NAMES,
    MODES,
    ScalePoint,
    Scenario,
    parse_ranks,
)
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.core.two_steps import two_steps
from lightning_gradsched.errors import GradSchedError, ProfileError
from lightning_gradsched.files import written_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gradsched scale`; names of networks and profiles are checked by ``run``."""
    add = parser.add_argument
    add("--profile", required=True, help=f"path of a backward profile, or {_or(PUBLISHED)}")
    add("--network", required=True, help=_or(NETWORKS))
    add("--ranks", default="1..1024", help="FIRST..LAST, doubling, or a list: 12,192")
    add("--algorithm", choices=ALGORITHM_NAMES, default="best", help="of the all-reduce")
    add("--control", choices=("all", *CONTROL_PLANES), default="all", help="control plane")
    add("--planner", choices=PLANNER_NAMES, default="ddp", help="how gradients are grouped")
    modes = (*MODES, "all")
    add("--mode", nargs="+", choices=modes, default=["backward"], help="modes of reduction")
    add("--tensors", type=int, help="tensors negotiated a step (default: the profile's rows)")
    add("--message-us", type=float, default=1.0, help="control work for one request, microseconds")
    add("--json", type=Path, help="write rows and assumptions here")
    add("--png", type=Path, help="draw efficiency and control work here (needs matplotlib)")
    help = "draw two steps on the most ranks, by mode, here: .html, or .png (needs matplotlib)"
    add("--timeline", type=Path, help=help)


def run(args: argparse.Namespace) -> int:
    """Print the table; write what was asked for.

    Raises:
        ProfileError: unknown profile or network, bad ranks, or an impossible unit cost.
        GradSchedError: a file that cannot be written, or a picture without matplotlib.
    """
    study = _study(args)
    print("\n".join(_lines(study)))
    try:
        _write(study, args)
    except OSError as error:
        raise GradSchedError(
            f"expected --json, --png and --timeline to be files that can be written, got {error}"
        ) from error
    return 0


def _write(study: Study, args: argparse.Namespace) -> None:
    if args.json is not None:
        with written_whole(args.json) as fresh:
            fresh.write_text(json.dumps(_as_dict(study), indent=1) + "\n", encoding="utf-8")
    if args.png is not None:
        # Imported here: it needs matplotlib, which a table does not.
        from lightning_gradsched.commands.scale_picture import draw

        draw(study.title, study.points, study.published, args.png)
    if args.timeline is not None:
        from lightning_gradsched.render.steps import write_steps

        write_steps(study.steps, study.steps_title, args.timeline)


class Study(NamedTuple):
    """What one command computed: ``points`` by rank count, by control plane, then by mode.

    ``steps``: two in a row on the most ranks, by mode, under the first control plane.
    """

    title: str
    points: tuple[ScalePoint, ...]
    steps: dict[str, Timeline]
    steps_title: str
    published: tuple[Point, ...]
    assumptions: tuple[str, ...]


def _study(args: argparse.Namespace) -> Study:
    network = network_named(args.network)
    ranks = parse_ranks(args.ranks)
    profile, notes, published = _profile(args.profile, args.network)
    n_tensors = len(profile.params) if args.tensors is None else args.tensors
    _check(profile, n_tensors, args.message_us)
    scenario = Scenario(
        profile,
        network,
        planner_named(args.planner, group_nbytes=DDP_CAP_NBYTES),
        args.algorithm,
        n_tensors / len(profile.params),
        replace(ControlCosts(), message_s=args.message_us * 1e-6),
    )
    scenarios = {mode: replace(scenario, mode=mode) for mode in _modes(args)}
    controls = list(CONTROL_PLANES) if args.control == "all" else [args.control]
    points = (
        of_mode.at(n_ranks, control)
        for n_ranks in ranks
        for control in controls
        for of_mode in scenarios.values()
    )
    return Study(
        f"{args.profile} on {network.name}, {_planned(args)}, {n_tensors} tensors,"
        f" {args.message_us:g} us a request",
        tuple(points),
        {
            f"{mode}, two steps": two_steps(of_mode.timeline(ranks[-1], controls[0]))
            for mode, of_mode in scenarios.items()
        },
        f"{args.profile} on {ranks[-1]:,} ranks of {network.name}, control plane {controls[0]!r}",
        published,
        (*notes, *network.notes, *_common_notes(args, scenario)),
    )


def _modes(args: argparse.Namespace) -> tuple[str, ...]:
    return MODES if "all" in args.mode else tuple(dict.fromkeys(args.mode))


def _planned(args: argparse.Namespace) -> str:
    """Who plans, and for what: reductions that go into the forward have a planner of their own."""
    modes = _modes(args)
    if modes == ("overlap_forward",):
        return "mode 'overlap_forward'"
    if len(modes) > 1:
        own = " (overlap_forward: its own)" if "overlap_forward" in modes else ""
        return f"planner {args.planner!r}{own}"
    mode = "" if modes == ("backward",) else f", mode {modes[0]!r}"
    return f"planner {args.planner!r}{mode}"


def _check(profile: BackwardProfile, n_tensors: int, message_us: float) -> None:
    if not profile.params or profile.forward_s + profile.backward_s == 0:
        raise ProfileError(
            f"expected a profile with parameters and compute time, got {len(profile.params)}"
            f" parameters, {profile.forward_s} s forward and {profile.backward_s} s backward"
        )
    if n_tensors < 1 or not 0 <= message_us < inf:
        raise ProfileError(
            "expected --tensors from 1 up and a finite --message-us from 0 up;"
            f" got {n_tensors} tensors and {message_us} us"
        )


def _profile(name: str, network: str) -> tuple[BackwardProfile, tuple[str, ...], tuple[Point, ...]]:
    """A profile, what was assumed for it, and what is published of it on ``network``."""
    if name not in PUBLISHED and (path := Path(name)).exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"expected a backward profile at {path}, got {error}") from error
        return BackwardProfile.from_json(text), (f"compute and gradients: {path}",), ()
    known = published_named(name)
    return known.profile, known.notes, known.points if known.network in (network, None) else ()


def _common_notes(args: argparse.Namespace, scenario: Scenario) -> tuple[str, ...]:
    costs = scenario.costs
    sharded = (
        "shard_optimizer: weights have their gradients' bytes, and gathering them takes half an"
        " all-reduce (assumption)",
    )
    return (
        *(sharded if "shard_optimizer" in _modes(args) else ()),
        f"groups: {_planned(args)}; all-reduce: {args.algorithm}; transfers take turns,"
        " and cost the computation nothing",
        f"control: {scenario.n_tensors} tensors a step, {costs.message_s * 1e6:g} us a request"
        f" (assumption, nobody's measurement), a cycle every {costs.cycle_s * 1e3:g} ms (Laanait et"
        f" al.'s job script), tree of radix {costs.radix} (assumption)",
        "weak scaling: each rank's work stays the same; ranks alike and independent of each other;"
        " no input, no contention with other jobs, all nodes equally near",
        "efficiency: against one rank of the profile that waits for nobody",
    )


def _lines(study: Study) -> Iterable[str]:
    controls = list(dict.fromkeys(point.control for point in study.points))
    modes = list(dict.fromkeys(point.mode for point in study.points))
    if len(modes) == 1:
        yield f"{study.title}: step in ms (efficiency), by control plane"
        yield from _table(study.points, controls)
    for control in controls if len(modes) > 1 else ():
        yield f"{study.title}: step in ms (efficiency), by mode, control plane {control!r}"
        yield from _table([p for p in study.points if p.control == control], modes)
    if len(modes) == 1 and any(point.control_s for point in study.points):
        yield "\ncontrol work of the busiest rank, ms a step (hidden or not)"
        yield f"{'ranks':>6}" + "".join(f"{name:>12}" for name in controls)
        for row in _rows(study.points, len(controls)):
            work = "".join(f"{point.control_s * 1e3:>12.2f}" for point in row)
            yield f"{row[0].n_ranks:>6}{work}"
    if study.published:
        yield "\npublished efficiency"
        yield from (f"{p.n_ranks:>6}  {p.efficiency:.3f}  {p.source}" for p in study.published)
    yield "\nassumed"
    yield from (f"- {note}" for note in study.assumptions)


def _table(points: Sequence[ScalePoint], columns: Sequence[str]) -> Iterable[str]:
    left = f"{'ranks':>6}  {'all-reduce ms':<20} {'slowest':>8}"
    yield left + "".join(f"{name:>17}" for name in columns)
    for row in _rows(points, len(columns)):
        yield _left(row[0]) + "".join(
            f"{point.step_s * 1e3:>9.1f} ({point.efficiency:.3f})" for point in row
        )


def _rows(points: Sequence[ScalePoint], n_columns: int) -> list[Sequence[ScalePoint]]:
    return [points[i : i + n_columns] for i in range(0, len(points), n_columns)]


def _left(point: ScalePoint) -> str:
    slowest = point.slowest_s / point.compute_s - 1
    return (
        f"{point.n_ranks:>6}  {point.all_reduce_s * 1e3:>7.2f} {point.algorithm:<12}"
        f" {slowest:>+8.1%}"
    )


def _as_dict(study: Study) -> dict[str, Any]:
    return {
        "title": study.title,
        "points": [point.to_dict() for point in study.points],
        "published": [point._asdict() for point in study.published],
        "assumptions": study.assumptions,
    }


def _or(names: Iterable[str]) -> str:
    listed: Sequence[str] = sorted(names)
    return ", ".join(listed[:-1]) + f" or {listed[-1]}"
