"""The report as one HTML page that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from lightning_gradsched.core.report import (
    HIDDEN,
    LAST_GROUP,
    READY_LATE,
    WAITED_FOR_LINK,
    WAITED_FOR_ORDER,
    GroupRow,
    OverlapReport,
)
from lightning_gradsched.core.timeline import COMMUNICATION, Timeline
from lightning_gradsched.files import written_whole
from lightning_gradsched.render.layout import KINDS, picture_of
from lightning_gradsched.render.svg import timeline_svg
from lightning_gradsched.trace import Trace

# reason -> (what it means, what may help), as docs/reading-the-report.md has them.
ADVICE = {
    HIDDEN: ("finished before backward did", "nothing to gain"),
    LAST_GROUP: (
        "its gradients are the last of all; even alone on the link it could not have been hidden",
        "a smaller last group: planner='fixed_size', a smaller group_nbytes",
    ),
    READY_LATE: ("even alone on the link it could not have been hidden", "smaller groups"),
    WAITED_FOR_LINK: (
        "launched in time, but the groups before it were still being sent",
        "fewer, larger groups where latency is the cost; else a faster link",
    ),
    WAITED_FOR_ORDER: (
        "full, but an earlier group of the schedule was not",
        "the schedule's order differs from this rank's: ranks with different graphs, or parameters"
        " that a backward did not reach",
    ),
}
_UNKNOWN_REASON = ("", "see docs/reading-the-report.md")
# Parameters whose names stand in the table; the others unfold.
_FIRST_NAMES = 2


def write_html(trace: Trace, path: Path) -> None:
    """Write the page about ``trace`` to ``path``."""
    page = html_page(trace, title=path.stem)
    with written_whole(path) as fresh:
        fresh.write_text(page, encoding="utf-8")


def html_page(trace: Trace, *, title: str) -> str:
    """The whole page; every name in it is escaped."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    picture, report = picture_of(trace), trace.report
    return template.substitute(
        title=escape(title),
        cards="\n".join(_cards(report, trace.predicted)),
        n_steps=report.n_steps,
        legend="\n".join(
            f'<li><i class="{kind}"></i>{escape(KINDS[kind])}</li>' for kind in picture.kinds()
        ),
        timeline=timeline_svg(picture),
        rows="\n".join(map(_table_row, report.rows)),
        reasons="\n".join(_reasons(report.rows)),
        schedule=escape(trace.schedule),
    )


def _cards(report: OverlapReport, predicted: Timeline | None) -> Iterator[str]:
    """The summary numbers, each with what was predicted for it."""
    comm_s = predicted.busy_s(COMMUNICATION) if predicted else None
    exposed_s = predicted.exposed_s() if predicted else None
    yield _card("step", _ms(report.step_s), "median of the recorded steps")
    yield _card("compute", _ms(report.compute_s), "the step without the exposed part")
    note = _prediction(comm_s) or "while any reduction was under way"
    yield _card("communication", _ms(report.comm_s), note)
    note = _prediction(exposed_s) or "communication that nothing hid"
    yield _card("exposed", _ms(report.exposed_s), note, "warn" if report.exposed_s else "")
    yield _card("hidden", f"{report.overlap:.0%}", "share of the communication")


def _card(name: str, value: str, note: str, css: str = "") -> str:
    return f'<div class="card {css}"><b>{value}</b><span>{name}</span><small>{note}</small></div>'


def _prediction(seconds: float | None) -> str:
    return "" if seconds is None else f"predicted {_ms(seconds)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _table_row(row: GroupRow) -> str:
    times = (row.ready_s, row.launch_s, row.finish_s, row.exposed_s)
    cells = [
        f"<td>{escape(row.label)}</td>",
        f'<td class="names">{_names(row.names)}</td>',
        f"<td>{row.nbytes / 1024:.1f}</td>",
        *(f"<td>{time_s * 1e3:.2f}</td>" for time_s in times),
        f'<td class="why"><span class="reason {_css(row)}">{escape(row.reason)}</span></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _css(row: GroupRow) -> str:
    return "good" if row.reason == HIDDEN else "bad"


def _names(names: Sequence[str]) -> str:
    first = ", ".join(f"<code>{escape(name)}</code>" for name in names[:_FIRST_NAMES])
    if len(names) <= _FIRST_NAMES:
        return first
    all_names = "".join(f"<li><code>{escape(name)}</code></li>" for name in names)
    rest = f"+{len(names) - _FIRST_NAMES} more"
    return f"<details><summary>{first} <em>{rest}</em></summary><ol>{all_names}</ol></details>"


def _reasons(rows: Sequence[GroupRow]) -> Iterator[str]:
    """A row for each reason that occurs, the costliest first."""
    exposed_s: dict[str, float] = {}
    for row in rows:
        exposed_s[row.reason] = exposed_s.get(row.reason, 0.0) + row.exposed_s
    for reason in sorted(exposed_s, key=lambda name: -exposed_s[name]):
        n_groups = sum(row.reason == reason for row in rows)
        meaning, help_text = map(escape, ADVICE.get(reason, _UNKNOWN_REASON))
        yield (
            f'<tr><td class="why">{escape(reason)}</td><td>{n_groups}</td>'
            f"<td>{exposed_s[reason] * 1e3:.2f}</td>"
            f'<td class="names">{meaning}</td><td class="names">{help_text}</td></tr>'
        )
