"""Timelines below one another, by name, as a page or a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.files import written_whole
from lightning_gradsched.render.layout import KINDS, picture_of_steps
from lightning_gradsched.render.png import write_picture
from lightning_gradsched.render.svg import timeline_svg

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>Two simulated steps in a row. Numbers in boxes are groups, with a dash those of the second step;
where communication goes on and nothing is computed, the step is marked.</p>
<section>
<div class="scroll">
$timeline
</div>
<ul class="legend">
$legend
</ul>
</section>
</main>
</body>
</html>
"""


def write_steps(steps: Mapping[str, Timeline], title: str, path: Path) -> None:
    """By the ending of ``path``: ``.html`` or ``.png``.

    Raises:
        GradSchedError: another ending; or a PNG without matplotlib.
    """
    if path.suffix == ".png":
        write_picture(picture_of_steps(steps), title, path)
    elif path.suffix == ".html":
        page = steps_page(steps, title)
        with written_whole(path) as fresh:
            fresh.write_text(page, encoding="utf-8")
    else:
        raise GradSchedError(f"expected a timeline's path to end in .html or .png, got {path}")


def steps_page(steps: Mapping[str, Timeline], title: str) -> str:
    """Loads nothing and runs no script; in the style of the report's page."""
    report = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    picture = picture_of_steps(steps)
    return Template(PAGE).substitute(
        title=escape(title),
        style=report.partition("<style>")[2].partition("</style>")[0],
        timeline=timeline_svg(picture),
        legend="\n".join(
            f'<li><i class="{kind}"></i>{escape(KINDS[kind])}</li>' for kind in picture.kinds()
        ),
    )
