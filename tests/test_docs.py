"""What the pages in docs/ claim to be tested is, and what they quote is said by the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES_WITH_TESTS = ["compatibility.md", "ddp-tests.md"]
# Said by PyTorch or Lightning, not by this package.
SAID_BY_OTHERS = ("You selected an invalid strategy name", "Function 'MulBackward0' returned nan")
# In a quoted message, what differs from case to case; the pieces between must be in the code.
VARIABLE = re.compile(
    r"\d[\d.]*|\[.*?\]|'[^']*'|…|[;:,()]|\bN\b|HOST|PORT|\S*\b(?:bias|\w+Error)\b"
)


def linked_tests(page: str) -> list[tuple[str, str]]:
    return re.findall(r"\[`?(test_\w+)`?\]\(\.\./(tests/[\w/]+\.py)\)", (DOCS / page).read_text())


def rows(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return [row for row in cells if set(row[0]) != {"-"} and set("".join(row)) != set("- ")]


@pytest.mark.parametrize("page", PAGES_WITH_TESTS)
def test_every_linked_test_exists(page: str) -> None:
    links = linked_tests(page)
    assert links
    for name, path in links:
        assert f"def {name}(" in (ROOT / path).read_text(), (page, name, path)


def test_every_yes_of_ours_links_its_test_and_every_other_answer_has_a_reason() -> None:
    header, *features = rows("compatibility.md")
    assert header[-1] == "gradsched"
    for row in features:
        answer, *rest = row[-1].split(" ", 1)
        assert answer in ("Y", "P", "N"), row
        assert rest, row
        if answer == "Y":
            assert "](../tests/" in rest[0], row


def test_each_kind_of_ddp_test_has_one_of_ours_or_a_reason() -> None:
    header, *kinds = rows("ddp-tests.md")
    assert len(header) == 3
    named = re.findall(r"`(test_\w+)`", " ".join(row[0] for row in kinds))
    assert len(named) == len(set(named)) == 86
    for row in kinds:
        assert "](../tests/" in row[2] or row[2].startswith("Not: "), row


def quoted_messages() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text()
    bold = re.findall(r"\*\*`([^`]+)`\*\*", text)
    first_cells = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    return [message for message in bold + first_cells if not message.startswith(SAID_BY_OTHERS)]


def said_by_the_code() -> str:
    """All sources, with adjacent string literals joined and placeholders of f-strings cut out."""
    sources = "".join(p.read_text() for p in sorted((ROOT / "lightning_gradsched").rglob("*.py")))
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", sources)
    return " ".join(re.sub(r"\{[^{}]*\}", "", joined).split())


def is_said(piece: str, said: str) -> bool:
    """In one string or two, but for the first or last word, which may be filled in."""
    words = piece.split()
    parts = [words, words[1:], words[:-1], words[1:-1]]
    if any(" ".join(part) in said for part in parts if part):
        return True
    halves = [(words[:i], words[i:]) for i in range(2, len(words) - 1)]
    return any(" ".join(a) in said and " ".join(b) in said for a, b in halves)


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_that_troubleshooting_quotes_are_said_by_the_code(message: str) -> None:
    said = said_by_the_code()
    pieces = [piece.strip(" .") for piece in VARIABLE.split(" ".join(message.split()))]
    telling = [piece for piece in pieces if len(piece.split()) > 1]
    assert telling, "nothing to look for"
    missing = [piece for piece in telling if not is_said(piece, said)]
    assert not missing, missing


def test_the_check_of_messages_finds_what_is_stale() -> None:
    assert not is_said("the ranks hold unlike models", said_by_the_code())
