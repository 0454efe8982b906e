"""Measure the papers' claims again and write docs/claims.md: `python -m zoo.reproduce`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from zoo.claim import (
    burgers,
    compressed_sensing,
    deconvolution,
    heat,
    navier_stokes,
    photograph_patches,
    unknown_blur,
    unknown_operator,
)
from zoo.claim.claim import Claim, Measured
from zoo.claim.page import write_page
from zoo.errors import UserError, user_errors
from zoo.files import write_json, written_whole

CLAIMS: tuple[Claim, ...] = (
    deconvolution.CLAIM,
    heat.CLAIM,
    burgers.CLAIM,
    navier_stokes.CLAIM,
    compressed_sensing.CLAIM,
    photograph_patches.CLAIM,
    unknown_operator.CLAIM,
    unknown_blur.CLAIM,
)
_ROOT = Path(__file__).resolve().parent.parent
_EPILOG = """examples:
  python -m zoo.reproduce                          all claims; those in the results file are kept
  python -m zoo.reproduce --small                  short forms, into outputs/claims_small/
  python -m zoo.reproduce --only deconvolution     one claim
  python -m zoo.reproduce --only deconvolution --again    although it has been measured

Results are kept after every claim. The exit status is 1 if a tolerance fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 if a claim's tolerance fails."""
    options = _options(arguments)
    with user_errors():
        return reproduce(options.only or [c.name for c in CLAIMS], options)
    return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.reproduce",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [claim.name for claim in CLAIMS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    parser.add_argument("--small", action="store_true", help="under five minutes a claim")
    parser.add_argument("--again", action="store_true", help="measure what has been measured")
    parser.add_argument("--results", type=Path, help="JSON file of measured numbers")
    parser.add_argument("--docs", type=Path, help="folder of claims.md and images/")
    options = parser.parse_args(arguments)
    small = _ROOT / "outputs" / "claims_small"
    folder = small if options.small else _ROOT / "benchmarks" / "results"
    options.results = options.results or folder / "claims.json"
    options.docs = options.docs or (small if options.small else _ROOT / "docs")
    return options


def reproduce(names: Sequence[str], options: argparse.Namespace) -> int:
    """Measure the named claims that are not in the results yet; write page and pictures.

    Raises:
        UserError: the results file is damaged.
    """
    results = read_results(options.results)
    for claim in (claim for claim in CLAIMS if claim.name in names):
        if options.again or claim.name not in results:
            results[claim.name] = _measured(claim, options.small)
            # After each: a run that is stopped goes on where it was.
            write_json(options.results, results)
        _draw(claim, results[claim.name]["measured"], options.docs)
    write_page(options.docs / "claims.md", CLAIMS, results)
    return _judged(names, results)


def read_results(path: Path) -> dict[str, Any]:
    """What has been measured, {} if nothing.

    Raises:
        UserError: the file is not what this program writes.
    """
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        for entry in results.values():
            entry["measured"]["seeds"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no results of this program: {error!r}. Expected JSON that it wrote; "
            "next, delete the file or name another one with --results FILE."
        ) from error
    return results


def _measured(claim: Claim, small: bool) -> dict[str, Any]:
    # Not the time on the wall, which other programs of the machine lengthen.
    start_s = process_time()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(claim.name, total=1.0)
        measured = claim.measure(small, lambda share: progress.update(task, completed=share))
    return {
        "small": small,
        "cpu_s": round(process_time() - start_s, 1),
        "versions": {"torch": torch.__version__},
        "measured": measured,
    }


def _draw(claim: Claim, measured: Measured, docs: Path) -> None:
    with written_whole(docs / "images" / f"claim_{claim.name}.png") as fresh:
        claim.plot(measured).savefig(fresh, facecolor="white")


def _judged(names: Sequence[str], results: dict[str, Any]) -> int:
    """Print every tolerance; 1 if one fails."""
    console, failed = Console(soft_wrap=True, highlight=False), False
    for claim in (claim for claim in CLAIMS if claim.name in names):
        for check in claim.checks(results[claim.name]["measured"]):
            verdict = "holds" if check.holds else "FAILS"
            console.print(f"{verdict}  {claim.name}: {check.asked}: {check.measured}", markup=False)
            failed |= not check.holds
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
