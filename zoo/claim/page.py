"""The page of claims, docs/claims.md, out of the results file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.claim.claim import Claim, Rows
from zoo.files import written_whole

_INTRODUCTION = """# Claims, measured

What the seed papers of [learning to invert](zoo/learning-to-invert.md) claim, measured here.
`python -m zoo.reproduce` writes this page from `benchmarks/results/claims.json`, measuring what is
not in there yet; it exits with a status other than 0 if a tolerance fails. "Published" gives only
what could be verified in a public source. Errors after ± are standard deviations over seeds.
"""


def write_page(path: Path, claims: Sequence[Claim], results: dict[str, Any]) -> None:
    """Write the measured claims of `results` to `path`, whole or not at all."""
    sections = [_section(claim, results[claim.name]) for claim in claims if claim.name in results]
    with written_whole(path) as fresh:
        fresh.write_text("\n".join([_INTRODUCTION, _summary(claims, results), *sections]))


def _summary(claims: Sequence[Claim], results: dict[str, Any]) -> str:
    rows = []
    for claim in claims:
        if claim.name in results:
            checks = claim.checks(results[claim.name]["measured"])
            holding = sum(check.holds for check in checks)
            rows.append([f"[{claim.title}](#{claim.name})", f"{holding} of {len(checks)}"])
    return _markdown(Rows(["claim", "tolerances that hold"], rows))


def _section(claim: Claim, result: dict[str, Any]) -> str:
    measured = result["measured"]
    again = f"python -m zoo.reproduce --only {claim.name} --again"
    commands = "\n".join([again + (" --small" if result["small"] else ""), *claim.experiments])
    checks = [
        [check.asked, check.measured, "yes" if check.holds else "**no**"]
        for check in claim.checks(measured)
    ]
    return "\n".join(
        [
            f'<a id="{claim.name}"></a>\n## {claim.title}\n',
            f"Source: {claim.source}.\n\nPublished: {claim.published}\n",
            f"```\n{commands}\n```\n",
            f"{_run(result)}\n",
            _markdown(Rows(["asked", "measured", "holds"], checks)),
            _markdown(claim.table(measured)),
            *([claim.remarks + "\n"] if claim.remarks else []),
            f"![{claim.title}](images/claim_{claim.name}.png)\n",
        ]
    )


def _run(result: dict[str, Any]) -> str:
    seeds = result["measured"]["seeds"]
    form = "short form, " if result["small"] else ""
    # Older results have the time on the wall alone.
    time = (
        f"{result['cpu_s']:.0f} s of a processor's time"
        if "cpu_s" in result
        else f"{result['duration_s']:.0f} s on one thread of a shared machine"
    )
    return f"Measured: {form}{_count(seeds)}, {time}, torch {result['versions']['torch']}."


def _count(seeds: Sequence[int]) -> str:
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"


def _markdown(rows: Rows) -> str:
    lines = [rows.header, ["---"] * len(rows.header), *rows.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
