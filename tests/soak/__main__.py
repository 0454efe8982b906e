"""``python -m tests.soak --seconds 600``: random episodes on 4 ranks until the time is over.

``--seed N`` repeats one. Prints each seed; exits 1 if any episode failed, with how to repeat it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from itertools import count

from tests.soak.episodes import make_episode
from tests.soak.outcome import Summary, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long; 600 by default")
    parser.add_argument("--first-seed", type=int, help="seeds count up from here; random if absent")
    parser.add_argument("--seed", type=int, help="play this one episode and say what it is")
    parser.add_argument(
        "--modes", action="store_true", help="with overlap_forward, gradient_lag or shard_optimizer"
    )
    asked = parser.parse_args()
    if asked.seed is not None:
        print(make_episode(asked.seed, with_modes=asked.modes), flush=True)
    first = asked.first_seed if asked.first_seed is not None else random.randrange(10**6) * 1000
    seeds = [asked.seed] if asked.seed is not None else count(first)
    summary = Summary()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as calibration_dir:
        for seed in seeds:
            if time.monotonic() - began_s > asked.seconds:
                break
            outcome = play(make_episode(seed, with_modes=asked.modes), calibration_dir)
            summary.add(outcome)
            print(outcome, flush=True)
    print(summary)
    return 1 if summary.failed_seeds else 0


if __name__ == "__main__":
    sys.exit(main())
