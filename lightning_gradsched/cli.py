"""The ``gradsched`` command: tools around a job. None of them loads torch before it needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_gradsched import __version__
from lightning_gradsched.errors import GradSchedError

# command -> what it does; the module of the same name in commands/ has add_arguments and run.
COMMANDS = {
    "doctor": "versions, ranks, network and plans, before a long job",
    "report": "table, picture and page of a trace that a training run has written",
    "scale": "step time and efficiency predicted for many ranks",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 with a message on stderr if its input was no good."""
    args = _parser().parse_args(argv)
    try:
        return int(import_module(f"lightning_gradsched.commands.{args.command}").run(args))
    except GradSchedError as error:
        print(f"gradsched {args.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gradsched", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gradsched {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary in COMMANDS.items():
        module = import_module(f"lightning_gradsched.commands.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
