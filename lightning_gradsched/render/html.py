"""The report as one HTML page that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from lightning_gradsched.core.reasons import (
    HIDDEN,
    LAST_GROUP,
    LATENCY_BOUND,
    READY_LATE,
    STRAGGLER,
    WAITED_FOR_LINK,
    WAITED_FOR_ORDER,
)
from lightning_gradsched.core.report import GroupRow, OverlapReport, TriedPlan
from lightning_gradsched.files import written_whole
from lightning_gradsched.render.layout import KINDS, picture_of
from lightning_gradsched.render.svg import timeline_svg
from lightning_gradsched.trace import Trace

# reason -> (what it means, what may help), as docs/reading-the-report.md has them.
ADVICE = {
    HIDDEN: (
        "finished before backward did, or no later than a group before it",
        "nothing to gain",
    ),
    STRAGGLER: (
        "the transfer lasted longer than the network needs, because another rank came to it late",
        "look at the rank that is named: its data, its device, what else runs there; no grouping"
        " helps",
    ),
    LATENCY_BOUND: (
        "half of its transfer or more is the network's fixed latency, whatever its size",
        "fewer, larger groups: planner='optimal' or 'auto', a larger group_nbytes",
    ),
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
        cards="\n".join(_cards(report)),
        n_steps=report.n_steps,
        legend="\n".join(
            f'<li><i class="{kind}"></i>{escape(KINDS[kind])}</li>' for kind in picture.kinds()
        ),
        timeline=timeline_svg(picture),
        predicted_head="<th>predicted</th>" if report.predicted else "",
        rows="\n".join(_table_row(row, bool(report.predicted)) for row in report.rows),
        reasons="\n".join(_reasons(report.rows)),
        tried=_tried(report.tried) if report.tried else "",
        schedule=escape(trace.schedule),
    )


def _cards(report: OverlapReport) -> Iterator[str]:
    """The summary numbers, each with what was predicted for it."""
    notes = [
        "median of the recorded steps",
        "while any reduction was under way",
        "communication that nothing hid",
    ]
    if report.predicted is not None:
        notes = [f"predicted {_ms(seconds)}" for seconds in report.predicted]
        notes[0] += " without optimizer and data"
    step, comm, exposed = notes
    yield _card("step", _ms(report.step_s), step)
    yield _card("compute", _ms(report.compute_s), "the step without the exposed part")
    yield _card("communication", _ms(report.comm_s), comm)
    yield _card("exposed", _ms(report.exposed_s), exposed, "warn" if report.exposed_s else "")
    yield _card("hidden", f"{report.overlap:.0%}", "share of the communication")


def _card(name: str, value: str, note: str, css: str = "") -> str:
    return f'<div class="card {css}"><b>{value}</b><span>{name}</span><small>{note}</small></div>'


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _table_row(row: GroupRow, has_prediction: bool) -> str:
    predicted = (row.predicted_finish_s, row.predicted_exposed_s)
    finish, exposed = (_predicted_cell(time_s) if has_prediction else "" for time_s in predicted)
    cells = [
        f"<td>{escape(row.label)}</td>",
        f'<td class="names">{_names(row.names)}</td>',
        f"<td>{row.nbytes / 1024:.1f}</td>",
        *(f"<td>{time_s * 1e3:.2f}</td>" for time_s in (row.ready_s, row.launch_s, row.finish_s)),
        finish,
        f"<td>{row.exposed_s * 1e3:.2f}</td>",
        exposed,
        f'<td class="why"><span class="reason {_css(row)}">{escape(row.why)}</span></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _predicted_cell(time_s: float | None) -> str:
    text = "-" if time_s is None else f"{time_s * 1e3:.2f}"
    return f'<td class="predicted">{text}</td>'


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


def _tried(tried: Sequence[TriedPlan]) -> str:
    """The section of the plans that were tried on the job."""
    template = Template(files(__package__).joinpath("tried.html").read_text(encoding="utf-8"))
    return template.substitute(rows="\n".join(map(_tried_row, tried)))


def _tried_row(plan: TriedPlan) -> str:
    cells = (
        f'<td class="why">{escape(plan.planner)}</td><td>{plan.n_groups}</td>'
        f"<td>{plan.predicted_exposed_s * 1e3:.2f}</td><td>{plan.step_s * 1e3:.2f}</td>"
        f'<td class="why">{"kept" if plan.kept else ""}</td>'
    )
    return f'<tr class="kept">{cells}</tr>' if plan.kept else f"<tr>{cells}</tr>"
