"""How fast samples come from page-cached files: this engine, its rivals, and the limit.

    python -m benchmarks.input_pipeline

One run, the same samples, all in turn in each round; a rival's rate is set against the limit of its
own round: `read_direct` into one buffer that is used again and again, in one process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.environment import describe_environment, write_json
from benchmarks.input_rivals import CASES, TINY_CASES, Case, rivals, write_files
from benchmarks.rounds import in_turn, ratio

RESULTS = Path(__file__).parent / "results" / "input_pipeline.json"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    # WebDataset and zarr say what they may do in some later version.
    warnings.simplefilter("ignore")
    cases = TINY_CASES if options.tiny else CASES
    result: dict[str, Any] = {"environment": describe_environment(), "rounds": options.rounds}
    result["cases"] = {}
    folder = Path(tempfile.mkdtemp(prefix="input_pipeline-", dir=options.folder))
    n_rounds = len(cases) * len(options.workers) * options.rounds
    try:
        with tqdm(total=n_rounds, unit="round") as bar:
            for name, case in cases.items():
                result["cases"][name] = _measure_case(folder / name, case, options, bar)
                write_json(options.output, result)  # what is done stays, should the rest not be
    finally:
        shutil.rmtree(folder)
    print(table(result))
    print(f"wrote {options.output}")


def _measure_case(
    folder: Path, case: Case, options: argparse.Namespace, bar: tqdm[Any]
) -> dict[str, Any]:
    bar.set_description(f"{folder.name}: files")
    folder.mkdir()
    write_files(folder, case)
    by_workers = {}
    for n in options.workers:
        bar.set_description(f"{folder.name}, {n} workers")
        by_workers[str(n)] = _measure(folder, case, n, options.rounds, bar)
    shutil.rmtree(folder)
    return {
        "sample_shape": list(case.field.shape),
        "sample_nbytes": case.field.nbytes,
        "n_samples": case.n_samples,
        "batch_size": case.batch_size,
        "by_workers": by_workers,
    }


def _measure(
    folder: Path, case: Case, num_workers: int, rounds: int, bar: tqdm[Any]
) -> dict[str, Any]:
    every = rivals(folder, case, num_workers)
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for each in every.values():
        _run(each)  # workers start, files are opened, buffers grow
    for number in range(rounds):
        for name in in_turn(every, number):
            seconds[name].append(_run(every[name]))
        bar.update()
    for each in every.values():
        each.close()
    return {name: _summary(case, taken, seconds["limit"]) for name, taken in seconds.items()}


def _run(rival: Any) -> float:
    start_s = perf_counter()
    n_batches = sum(1 for _ in rival.epoch())
    taken_s = perf_counter() - start_s
    assert n_batches, "no batch came"
    return taken_s


def _summary(case: Case, seconds: list[float], limit_s: list[float]) -> dict[str, Any]:
    rates = [case.nbytes / each / 1e9 for each in seconds]
    low, _, high = quantiles(rates, n=4)
    return {
        "GB_per_s": median(rates),
        "GB_per_s_quartiles": [low, high],
        "samples_per_s": case.n_samples / median(seconds),
        # Rates go against times: the limit's time over the rival's.
        "of_limit": ratio(limit_s, seconds)._asdict(),
        "seconds": seconds,
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a line a rival, GB/s and share of the limit by workers."""
    lines = []
    for name, case in result["cases"].items():
        workers = list(case["by_workers"])
        lines += [f"\n{name}: {case['sample_nbytes'] / 1e6:.2f} MB a sample, batches of "
                  f"{case['batch_size']}; GB/s (share of the limit)\n"]  # fmt: skip
        lines += ["| | " + " | ".join(f"{n} workers" for n in workers) + " |"]
        lines += ["| --- |" + " --- |" * len(workers)]
        for rival in case["by_workers"][workers[0]]:
            cells = [case["by_workers"][n][rival] for n in workers]
            shown = [f"{c['GB_per_s']:.2f} ({c['of_limit']['middle']:.2f})" for c in cells]
            lines.append(f"| {rival} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description="Samples a second and GB/s of the data engine, np.load, h5py, zarr, WebDataset "
        "and the limit. Writes some 3.5 GB to a temporary folder and removes them.",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help="where the files go; default: the system's temporary one")
    parser.add_argument("--tiny", action="store_true", help="small samples: does it run?")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
