"""Time to a stated PSNR over a shaped link: a real net of the zoo, by DDP and by gradsched.

    python -m benchmarks.time_to_psnr [--rate 1e9] [--ranks 2 4] [--rounds 3] [--output FILE]

Every rank is a host of its own, with a link of the given rate, started by torchrun as on a cluster:
`python -m zoo.train experiment=super_resolution` with EDSR in its published size, until a
validation reaches the target. On two ranks all strategies make the same updates, so that they reach
it in the same step, and only the time differs; on more, sums are rounded otherwise. Rivals take
turns, round by round. Needs root or user namespaces.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks import links
from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import in_turn, ratio
from zoo.data.photograph_file import ensure_photographs

ROOT = Path(__file__).parents[1]
METRIC = "val/psnr_gain"
PORT = 29533
TIMEOUT_S = 900
RIVALS = {
    "ddp": ["strategy=ddp"],
    "gradsched": ["strategy=gradsched"],
    "overlap_forward": ["strategy=gradsched", "strategy.overlap_forward=true"],
}
SETTINGS = (
    "experiment=super_resolution",
    # EDSR's baseline (Lim et al. 2017), on patches small enough for one core a rank.
    *("net.channels=64", "net.blocks=16", "data.patch_px=32", "data.batch_size=2"),
    *("scheduler=constant", "optimizer.lr=2e-4", "trainer.devices=1"),
    "+callback@callbacks.stop_at_target=stop_at_target",
    f"callbacks.stop_at_target.monitor={METRIC}",
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
)
REACHED = re.compile(r"^target: .* step (\d+), after ([\d.]+) s", re.MULTILINE)


class Reached(NamedTuple):
    """When the target was: after so many optimizer steps, and seconds with validations."""

    step: int
    seconds: float


def main() -> None:
    args = _arguments()
    try:
        links.become_root()
    except links.LinkError as error:
        sys.exit(str(error))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder, "photographs.h5")
        ensure_photographs(photographs)
        for n_ranks in args.ranks:
            runs = _rounds(n_ranks, args, Path(folder), photographs)
            results[str(n_ranks)] = summarise(runs)
            print(_table(n_ranks, results[str(n_ranks)]), flush=True)
    if args.output:
        head = {
            "environment": describe_environment(),
            "link": f"{args.rate:g} bit/s, tbf on network namespaces, made by {links.privileges()}",
            "target": f"{METRIC} {args.target:g} dB",
        }
        write_json(args.output, head | {"ranks": results})
        print(f"written to {args.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1e9, help="of each link, in bit/s (1e9)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3, help="two or more")
    parser.add_argument("--target", type=float, default=0.5, help="PSNR over bicubic's, in dB")
    parser.add_argument("--epoch-steps", type=int, default=40, help="steps between validations")
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"expected two --rounds or more, for a spread, got {args.rounds}")
    return args


def _rounds(
    n_ranks: int, args: argparse.Namespace, folder: Path, photographs: Path
) -> dict[str, list[Reached]]:
    runs: dict[str, list[Reached]] = {name: [] for name in RIVALS}
    with (
        links.ShapedLinks(n_ranks, args.rate) as hosts,
        tqdm(total=args.rounds * len(RIVALS), desc=f"{n_ranks} ranks") as bar,
    ):
        for number in range(args.rounds):
            for name in in_turn(RIVALS, number):
                bar.set_postfix_str(name)
                overrides = [
                    *RIVALS[name],
                    f"callbacks.stop_at_target.target={args.target}",
                    f"data.patches_per_epoch={2 * n_ranks * args.epoch_steps}",
                    f"data.path={photographs}",
                    f"hydra.run.dir={folder}/{n_ranks}_{name}_{number}",
                ]
                runs[name].append(_train(hosts, n_ranks, overrides))
                bar.update()
    return runs


def _train(hosts: links.ShapedLinks, n_ranks: int, overrides: Sequence[str]) -> Reached:
    """One training on all hosts; if a rank fails, end the others and say why."""
    settings = [*SETTINGS, f"trainer.num_nodes={n_ranks}", *overrides]
    with tempfile.TemporaryFile("w+") as log:
        ranks = [
            subprocess.Popen(
                [*hosts.command(rank), *_torchrun(rank, n_ranks, hosts.address(0)), *settings],
                cwd=ROOT,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
                stdout=log if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
            )
            for rank in range(n_ranks)
        ]
        codes = links.wait_for_ranks(ranks, TIMEOUT_S)
        log.seek(0)
        said = log.read()
    reached = REACHED.search(said)
    if reached is None or any(code != 0 for code in codes):
        raise SystemExit(f"expected every rank to reach the target, got:\n{said[-4000:]}")
    return Reached(int(reached[1]), float(reached[2]))


def _torchrun(rank: int, n_ranks: int, master: str) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={n_ranks}"),
        *("--nproc-per-node=1", f"--node-rank={rank}"),
        *(f"--master-addr={master}", f"--master-port={PORT}", "-m", "zoo.train"),
    ]


def summarise(runs: dict[str, list[Reached]]) -> dict[str, Any]:
    """Steps and seconds of every run, and seconds against DDP's in the same round.

    >>> runs = {"ddp": [Reached(80, 10.0)] * 3, "gradsched": [Reached(80, 8.0)] * 3}
    >>> summarise(runs)["gradsched"]["ratio_to_ddp"]["middle"]
    0.8
    """
    seconds = {name: [run.seconds for run in of] for name, of in runs.items()}
    return {
        name: {
            "steps": [run.step for run in of],
            "seconds": seconds[name],
            "median_s": median(seconds[name]),
            "ratio_to_ddp": ratio(seconds[name], seconds["ddp"])._asdict(),
        }
        for name, of in runs.items()
    }


def _table(n_ranks: int, rows: dict[str, Any]) -> str:
    lines = [f"{n_ranks} ranks: steps and seconds to the target, and against DDP"]
    for name, row in rows.items():
        steps = ", ".join(map(str, sorted(set(row["steps"]))))
        spread = "{middle:.3f} ({low:.3f} to {high:.3f})".format(**row["ratio_to_ddp"])
        lines.append(f"{name:<16} {steps:>8} steps {row['median_s']:8.1f} s   {spread} x ddp")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
