"""Groups in halves: gloo's ways to reduce-scatter, and a step that clips, on links of a given rate.

    python -m benchmarks.scatter [--output benchmarks/results/scatter.json]   # ten minutes

Two hosts, one rank each: network namespaces with shaped links into one bridge (needs root or user
namespaces). All ways are timed in turn, in the same processes; so are the steps of the rivals, of
an emulated net at communication ÷ compute of 1, each of which clips by the norm of all gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import links
from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import ratio

N_RANKS = 2
TIMEOUT_S = 1500
WHOLE, HALVES, WAITS, DDP = "all-reduce", "halves", "waits for all", "DDP"


def main() -> None:
    args = _arguments()
    try:
        links.become_root()
    except links.LinkError as error:
        sys.exit(str(error))
    with links.ShapedLinks(N_RANKS, args.rate) as hosts:
        collectives = _run(hosts, "collectives", args.rounds)
        print(collectives_markdown(collectives), flush=True)
        steps = {}
        for net in args.nets:
            steps[net] = _run(hosts, net, args.step_rounds)
            print(steps_markdown({net: steps[net]}), flush=True)
    if args.output:
        result = {
            "environment": describe_environment(),
            "link": f"tbf on network namespaces, made by {links.privileges()}",
            "rate_bit_per_s": args.rate,
            "n_ranks": N_RANKS,
            "collectives": collectives,
            "steps": steps,
        }
        write_json(args.output, result)
        print(f"written to {args.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1e9, help="of each link, in bit/s (1e9)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each size")
    parser.add_argument("--step-rounds", type=int, default=10, help="timed rounds of each net")
    parser.add_argument("--nets", nargs="*", default=["resnet50"], help="of benchmarks/tables.py")
    parser.add_argument("--output", type=Path, help="write the JSON here (tables are printed)")
    return parser.parse_args()


def collectives_markdown(times: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Median ms of each way; of each but the all-reduce, its share of that, with quartiles."""
    ways = list(next(iter(times.values())))
    lines = [f"| what | {' | '.join(ways)} |", "| --- " * (1 + len(ways)) + "|"]
    for what, seconds in times.items():
        cells = [f"{1e3 * median(seconds[WHOLE]):.2f} ms"]
        for way in ways[1:]:
            middle, low, high = ratio(seconds[way], seconds[WHOLE])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_markdown(rows: Mapping[str, Any]) -> str:
    """Median s of each rival's step; how many times as long as in halves, with quartiles."""
    rivals = list(next(iter(rows.values()))["rivals"])
    heads = [f"{rival} s" for rival in rivals]
    heads += [f"{rival} ÷ {HALVES}" for rival in rivals if rival != HALVES]
    lines = [f"| net | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for net, row in rows.items():
        seconds = row["rivals"]
        cells = [f"{median(seconds[rival]):.3f}" for rival in rivals]
        for rival in rivals:
            if rival != HALVES:
                middle, low, high = ratio(seconds[rival], seconds[HALVES])
                cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {net} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _run(hosts: links.ShapedLinks, what: str, n_rounds: int) -> Any:
    module = ["benchmarks.scatter_rank", what, str(n_rounds)]
    return links.result_of_ranks(hosts, module, TIMEOUT_S, [{}] * N_RANKS)


if __name__ == "__main__":
    main()
