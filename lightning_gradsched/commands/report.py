"""Print the overlap report of a trace, and draw it: a PNG and an HTML page beside the trace.

With --png or --html only what is named is drawn, where it is named.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.render.html import write_html
from lightning_gradsched.render.png import write_png
from lightning_gradsched.trace import Trace, read_trace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, help="what GradSchedStrategy(trace_path=...) wrote")
    parser.add_argument("--png", type=Path, metavar="PATH", help="where to write the PNG")
    parser.add_argument("--html", type=Path, metavar="PATH", help="where to write the page")
    parser.add_argument("--no-pictures", action="store_true", help="print the table only")


def run(args: Namespace) -> int:
    """Raises ``GradSchedError``: the trace cannot be read, or a picture not be written."""
    targets = _targets(args)
    trace = read_trace(args.trace)
    print(trace.report)
    # The page first: it needs no matplotlib.
    for path, write in targets:
        _write(write, trace, path)
        print(f"gradsched: wrote {path}")
    return 0


Writer = Callable[[Trace, Path], None]


def _targets(args: Namespace) -> list[tuple[Path, Writer]]:
    """What to write where."""
    html, png = args.html, args.png
    if args.no_pictures and (html or png):
        raise GradSchedError("expected either --no-pictures or --png and --html, got both")
    if not (args.no_pictures or html or png):
        html, png = args.trace.with_suffix(".html"), args.trace.with_suffix(".png")
    wanted: list[tuple[Path | None, Writer]] = [(html, write_html), (png, write_png)]
    targets = [(path, write) for path, write in wanted if path is not None]
    for path, _ in targets:
        if path.resolve() == args.trace.resolve():
            raise GradSchedError(
                f"{path}: writing there would replace the trace; give other paths by --png, --html"
            )
    return targets


def _write(write: Writer, trace: Trace, path: Path) -> None:
    try:
        write(trace, path)
    except OSError as error:
        raise GradSchedError(
            f"{path}: cannot be written ({error.strerror}); give another path by --png, --html"
        ) from error
