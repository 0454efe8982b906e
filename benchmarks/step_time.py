"""Step time on links of a given rate: gradsched beside DDP tuned by hand, FSDP2 and Horovod.

    python -m benchmarks.step_time            # the short form, under ten minutes
    python -m benchmarks.step_time --full     # every net and ratio, about an hour

Every rank is a host of its own: a network namespace with a shaped link into one bridge (needs root
or user namespaces). All rivals of a cell, which is a net at one ratio of communication to compute,
run in the same processes, in turn, step by step. Finished cells are kept: --resume goes on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import links
from benchmarks.environment import describe_environment, write_json
from benchmarks.rivals import MODES, RIVALS
from benchmarks.step_time_picture import draw
from benchmarks.step_time_rank import REAL_NETS, Cell
from benchmarks.step_time_table import as_markdown, forward_markdown, modes_markdown, summarise
from benchmarks.tables import TABLES

FULL_RATIOS = (0.25, 0.5, 1.0, 2.0)
SHORT_RATIOS = (1.0,)
SHORT_RIVALS = ("alone", "gradsched", "ddp_default", "ddp_5MiB", "ddp_10MiB", "ddp_one_bucket")
CELL_TIMEOUT_S = 1800


def main() -> None:
    args = _arguments()
    try:
        links.become_root()
    except links.LinkError as error:
        sys.exit(str(error))
    # As Ctrl-C does: end the ranks, remove the links.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    args.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    start = time.monotonic()
    with links.ShapedLinks(args.ranks) as hosts:
        cells = list(_cells(args))
        for number, cell in enumerate(cells, start=1):
            key = Path(cell.folder).name
            minutes = (time.monotonic() - start) / 60
            print(f"[{number}/{len(cells)}] {key}   ({minutes:.1f} min so far)", flush=True)
            row = _finished(cell, args) or _run(cell, hosts, args.rate)
            rows[key] = {**row, "summary": summarise(row)}
            print(as_markdown({key: rows[key]}).splitlines()[-1], flush=True)
    result = {
        "environment": describe_environment(),
        "link": f"tbf on network namespaces, made by {links.privileges()}",
        "n_ranks": args.ranks,
        "cells": rows,
    }
    print(as_markdown(rows))
    for table in (forward_markdown(rows), modes_markdown(rows)):
        if table:
            print(f"\n{table}")
    if args.output:
        write_json(args.output, result)
        draw(rows, args.output.with_suffix(".png"))
        print(f"written to {args.output} and {args.output.with_suffix('.png')}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    nets = [*TABLES, *REAL_NETS]
    parser.add_argument("--full", action="store_true", help="every ratio and every rival")
    parser.add_argument("--nets", nargs="+", choices=nets, default=nets)
    parser.add_argument(
        "--ratios", nargs="+", type=float, help="communication / compute of each net"
    )
    parser.add_argument("--rate", type=float, default=1e9, help="of each link, in bit/s (1e9)")
    parser.add_argument("--ranks", type=int, default=2, help="hosts, one rank each")
    parser.add_argument("--rounds", type=int, default=40, help="most timed steps of each rival")
    parser.add_argument("--cell-s", type=float, help="seconds of timed steps in each cell")
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), help="default: see --full")
    modes = [name.removeprefix("gradsched_") for name in MODES]
    parser.add_argument(
        "--modes", nargs="+", choices=modes, default=[], help="also gradsched in these"
    )
    parser.add_argument(
        "--as-it-is", action="store_true", help="real nets at --rate, whatever ratio that makes"
    )
    parser.add_argument("--output", type=Path, help="write the JSON here, and its picture (.png)")
    parser.add_argument("--work", type=Path, default=Path("outputs/step_time"))
    parser.add_argument("--resume", action="store_true", help="keep the cells finished in --work")
    args = parser.parse_args()
    args.ratios = args.ratios or (FULL_RATIOS if args.full else SHORT_RATIOS)
    args.cell_s = args.cell_s or (60 if args.full else 12)
    every = tuple(name for name in RIVALS if name not in MODES)
    rivals = args.rivals or (every if args.full else SHORT_RIVALS)
    args.rivals = (*rivals, *(f"gradsched_{mode}" for mode in args.modes))
    return args


def _cells(args: argparse.Namespace) -> Iterator[Cell]:
    for net in args.nets:
        as_it_is = args.as_it_is and net in REAL_NETS
        for ratio in (None,) if as_it_is else args.ratios:
            yield Cell(
                net=net,
                ratio=ratio,
                rivals=tuple(args.rivals),
                most_rounds=args.rounds,
                budget_s=args.cell_s,
                n_ranks=args.ranks,
                # A real net computes on the cores that move the bytes: that is what it is for.
                realtime=net in TABLES and links.privileges() == "root",
                folder=str(args.work / f"{net}_{'as_it_is' if ratio is None else f'{ratio:g}'}"),
            )


def _finished(cell: Cell, args: argparse.Namespace) -> dict[str, Any] | None:
    """The result of a run of the same cell that was asked to be kept."""
    path = Path(cell.folder, "cell.json")
    if not args.resume or not path.exists():
        return None
    row: dict[str, Any] = json.loads(path.read_text())
    return row if row["cell"] == json.loads(cell.to_json()) else None


def _run(cell: Cell, hosts: links.ShapedLinks, rate_bit_per_s: float) -> dict[str, Any]:
    if cell.net in REAL_NETS and cell.ratio is not None:
        rate_bit_per_s = _rate_of_ratio(cell, hosts)
    hosts.set_rate(rate_bit_per_s)
    result = _ranks(cell, hosts)
    row = {
        "cell": json.loads(cell.to_json()),
        "rate_bit_per_s": rate_bit_per_s,
        "compute": "emulated" if cell.net in TABLES else "real",
        **result,
    }
    write_json(Path(cell.folder, "cell.json"), row)
    return row


def _rate_of_ratio(cell: Cell, hosts: links.ShapedLinks) -> float:
    """The rate at which this net's gradients take ``cell.ratio`` of its compute."""
    assert cell.ratio is not None
    hosts.set_rate(None)
    probe = _ranks(replace(cell, rivals=("alone",)), hosts)
    seconds = sorted(probe["rivals"]["alone"])
    compute_s = seconds[len(seconds) // 2]
    sent_nbytes = 2 * (cell.n_ranks - 1) / cell.n_ranks * probe["nbytes"]
    return 8 * sent_nbytes / (cell.ratio * compute_s)


def _ranks(cell: Cell, hosts: links.ShapedLinks) -> dict[str, Any]:
    """Run every rank of a cell."""
    Path(cell.folder).mkdir(parents=True, exist_ok=True)
    module = ["benchmarks.step_time_rank", cell.to_json()]
    links.run_ranks(hosts, module, CELL_TIMEOUT_S, [{}] * cell.n_ranks)
    result: dict[str, Any] = json.loads(Path(cell.folder, "ranks.json").read_text())
    return result


if __name__ == "__main__":
    main()
