"""What the cells of ``benchmarks.step_time`` say: bounds, predictions and targets, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from benchmarks.rivals import MODES
from benchmarks.rounds import ratio
from lightning_gradsched.core.bound import bounds
from lightning_gradsched.core.cost import AlphaBeta, CostModel, fit_all_reduce
from lightning_gradsched.core.forward_overlap import step_s
from lightning_gradsched.core.plan import GroupPlan, ddp, fixed_size, optimal, single
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.core.schedule import lower
from lightning_gradsched.core.simulate import simulate

MIB = 1 << 20
HEADER = (
    "| net | comm ÷ compute | best DDP | gradsched ÷ it | ÷ DDP's default | ÷ FSDP2 | ÷ Horovod"
    " | exposed, of DDP's best → gradsched | ÷ bound | measured ÷ predicted | ÷ best simulated |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)
FORWARD_HEADER = (
    "| net | comm ÷ compute | groups in messages | step | ÷ cut bound | measured ÷ predicted"
    " | best DDP | ÷ it | ÷ gradsched without |",
    "|---|---|---|---|---|---|---|---|---|",
)

MODES_HEADER = (
    "| net | comm ÷ compute | mode | step | ÷ max(compute, comm) | best DDP | ÷ it"
    " | ÷ gradsched without |",
    "|---|---|---|---|---|---|---|---|",
)


def summarise(row: Mapping[str, Any]) -> dict[str, Any]:
    """Medians, ratios to rivals in the same rounds, and the distance to what could be."""
    seconds: dict[str, list[float]] = row["rivals"]
    medians = {name: median(values) for name, values in seconds.items()}
    best_ddp = min((name for name in seconds if "ddp_" in name), key=medians.__getitem__)
    bound_s = max(medians["alone"], row["comm_s"])
    predicted_s, fit_worst = _predictions(row["gradsched"], tuple(seconds))
    rivals = {
        name: {
            "median_s": medians[name],
            "quartiles_s": quantiles(values, n=4)[::2],
            "exposed_s": medians[name] - medians["alone"],
            "ratio_to_bound": medians[name] / bound_s,
            "gradsched_ratio": ratio(seconds["gradsched"], values),
            "predicted_s": predicted_s.get(name),
        }
        for name, values in seconds.items()
    }
    return {
        "best_ddp": best_ddp,
        "bound_s": bound_s,
        "best_simulated_s": predicted_s["optimal"],
        "fit_worst": fit_worst,
        "planner": row["gradsched"]["planner"],
        "n_groups": len(row["gradsched"]["groups"]),
        "planning": _planning(row["set_up_s"]["gradsched"], medians["gradsched"]),
        "rivals": rivals,
        "ratio": row["comm_s"] / medians["alone"],
        "forward": _forward(row, medians, seconds, best_ddp),
        "modes": {
            name: {
                "ratio_to_bound": medians[name] / bound_s,
                "ratio_to_best_ddp": ratio(seconds[name], seconds[best_ddp]),
                "ratio_to_gradsched": ratio(seconds[name], seconds["gradsched"]),
            }
            for name in MODES
            if name in seconds
        },
    }


def _forward(
    row: Mapping[str, Any],
    medians: Mapping[str, float],
    seconds: Mapping[str, Sequence[float]],
    best_ddp: str,
) -> dict[str, Any] | None:
    """The mode that goes on into the next forward: beside its bound, the rivals and itself."""
    account = row.get("gradsched_forward")
    if account is None:
        return None
    profile = BackwardProfile.from_json(json.dumps(account["backward_profile"]))
    cost = fit_all_reduce(NetworkProfile.from_json(json.dumps(account["network_profile"]))).model
    plan = GroupPlan(
        account["planner"],
        tuple(map(tuple, account["groups"])),
        tuple(account["launches"]),
        ends_with_backward=account.get("ends_with_backward", False),
    )
    # At the rate of the one all-reduce by which compute was set: a short message that a link lets
    # pass after a pause, or a connection that is young, has another, which is no whole step's.
    wire = AlphaBeta(0.0, row["comm_s"] / row["nbytes"])
    least = bounds(_computing_for(medians["alone"], profile), wire)
    ours = seconds["gradsched_forward"]
    return {
        "planner": plan.planner,
        "n_groups": len(plan.groups),
        "n_messages": plan.n_messages,
        "cut_bound_s": least.step_s,
        "backward_bound_s": least.backward_s,
        "predicted_s": step_s(plan, profile, cost),
        "ratio_to_cut_bound": medians["gradsched_forward"] / least.step_s,
        "ratio_to_best_ddp": ratio(ours, seconds[best_ddp]),
        "ratio_to_gradsched": ratio(ours, seconds["gradsched"]),
    }


def _computing_for(compute_s: float, profile: BackwardProfile) -> BackwardProfile:
    """``profile``, measured among hooks and messages, of a step that takes ``compute_s`` alone."""
    share = compute_s / (profile.forward_s + profile.backward_s)
    params = tuple(
        p._replace(ready_s=share * p.ready_s, needed_s=share * p.needed_s) for p in profile.params
    )
    return BackwardProfile(params, share * profile.forward_s, share * profile.backward_s)


def forward_markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The mode that goes on into the next forward, of the cells that have it; else empty."""
    with_it = [row for row in rows.values() if row["summary"]["forward"] is not None]
    return "\n".join([*FORWARD_HEADER, *map(_forward_line, with_it)]) if with_it else ""


def modes_markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Every mode that was measured, beside DDP and gradsched without; else empty."""
    lines = [line for row in rows.values() for line in _mode_lines(row)]
    return "\n".join([*MODES_HEADER, *lines]) if lines else ""


def _mode_lines(row: Mapping[str, Any]) -> Iterator[str]:
    summary = row["summary"]
    for name, mode in summary["modes"].items():
        columns = [
            row["cell"]["net"],
            ratio_of(row),
            name.removeprefix("gradsched_"),
            f"{summary['rivals'][name]['median_s'] * 1e3:.0f} ms",
            f"{mode['ratio_to_bound']:.3f}",
            summary["best_ddp"].removeprefix("ddp_"),
            _spread(mode["ratio_to_best_ddp"]),
            _spread(mode["ratio_to_gradsched"]),
        ]
        yield f"| {' | '.join(columns)} |"


def ratio_of(row: Mapping[str, Any]) -> str:
    """Communication to compute as it was asked for, or as it was measured."""
    asked = row["cell"]["ratio"]
    return f"{row['summary']['ratio']:.2f}" if asked is None else f"{asked:g}"


def _forward_line(row: Mapping[str, Any]) -> str:
    cell, forward = row["cell"], row["summary"]["forward"]
    ours = row["summary"]["rivals"]["gradsched_forward"]
    columns = [
        cell["net"],
        ratio_of(row),
        f"{forward['n_groups']} in {forward['n_messages']}",
        f"{ours['median_s'] * 1e3:.0f} ms",
        f"{forward['ratio_to_cut_bound']:.3f}",
        f"{ours['median_s'] / forward['predicted_s']:.3f}",
        row["summary"]["best_ddp"].removeprefix("ddp_"),
        _spread(forward["ratio_to_best_ddp"]),
        _spread(forward["ratio_to_gradsched"]),
    ]
    return f"| {' | '.join(columns)} |"


def as_markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """``rows``: each cell's row, with its ``summary``."""
    return "\n".join([*HEADER, *map(_line, rows.values())])


def _predictions(account: Any, rivals: Sequence[str]) -> tuple[dict[str, float], float]:
    """Step time by rival, and of the best plan there is, from gradsched's own measurements."""
    profile = BackwardProfile.from_json(json.dumps(account["backward_profile"]))
    fit = fit_all_reduce(NetworkProfile.from_json(json.dumps(account["network_profile"])))
    plans = dict(_plans(profile, fit.model, rivals))
    plans["gradsched"] = GroupPlan(account["planner"], tuple(map(tuple, account["groups"])))
    plans["optimal"] = optimal(profile, fit.model)
    return {
        name: _step_s(plan, profile, fit.model) for name, plan in plans.items()
    }, fit.worst_error


def _plans(
    profile: BackwardProfile, cost: CostModel, rivals: Sequence[str]
) -> Iterator[tuple[str, GroupPlan]]:
    for name in rivals:
        if name == "ddp_default":
            yield name, ddp(profile, cost)
        elif name == "ddp_one_bucket":
            yield name, single(profile, cost)
        elif name.startswith("ddp_"):
            cap_mib = int(name.removeprefix("ddp_").removesuffix("MiB"))
            yield name, fixed_size(profile, cost, nbytes=cap_mib * MIB)


def _step_s(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> float:
    timeline = simulate(lower(plan), plan, profile, cost)
    return profile.forward_s + max(span.end_s for span in timeline.spans)


def _planning(seconds: Sequence[float], step_s: float) -> dict[str, float]:
    """What it took until the plan stood: calibration first, then the steps."""
    calibration_s, *steps_s = seconds
    total_s = calibration_s + sum(steps_s)
    return {
        "n_steps": len(steps_s),
        "calibration_s": calibration_s,
        "total_s": total_s,
        "lost_s": total_s - len(steps_s) * step_s,
    }


def _line(row: Mapping[str, Any]) -> str:
    summary, cell = row["summary"], row["cell"]
    rivals = summary["rivals"]
    ours, best = rivals["gradsched"], rivals[summary["best_ddp"]]
    columns = [
        cell["net"],
        ratio_of(row),
        summary["best_ddp"].removeprefix("ddp_"),
        _spread(best["gradsched_ratio"]),
        *(
            f"{rivals[name]['gradsched_ratio'][0]:.3f}" if name in rivals else "-"
            for name in ("ddp_default", "fsdp2_replicate", "horovod")
        ),
        f"{best['exposed_s'] * 1e3:.0f} → {ours['exposed_s'] * 1e3:.0f} ms",
        f"{ours['ratio_to_bound']:.3f}",
        f"{ours['median_s'] / ours['predicted_s']:.3f}",
        f"{ours['median_s'] / summary['best_simulated_s']:.3f}",
    ]
    return f"| {' | '.join(columns)} |"


def _spread(of: Sequence[float]) -> str:
    middle, low, high = of
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
