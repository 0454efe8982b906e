"""The fault table: every fault has a test that is there, a measurement, and its row in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.fault_list import FAULTS
from benchmarks.faults import BEGIN, END, PAGE, RESULTS, shown, table

ROOT = Path(__file__).parents[2]


def test_every_fault_has_a_test_that_is_there() -> None:
    assert len(FAULTS) == len({fault.test for fault in FAULTS}) >= 25
    for fault in FAULTS:
        file, _, case = fault.test.partition("::")
        name = re.match(r"\w+", case)
        assert name
        assert f"def {name[0]}(" in (ROOT / file).read_text(), fault


def test_the_page_shows_what_was_measured() -> None:
    measured = json.loads(RESULTS.read_text())["faults"]
    assert [row["test"] for row in measured] == [fault.test for fault in FAULTS]
    shown_table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert shown_table == table(measured)


def test_no_cell_is_empty() -> None:
    for row in json.loads(RESULTS.read_text())["faults"]:
        assert row["fault"], row
        assert row["message"], row
        assert row["seconds"] >= 0, row
        assert row["lost_steps"] >= 0, row


def test_messages_are_shown_without_folders_and_in_one_line() -> None:
    assert shown("cannot read /tmp/a-1/b/last.ckpt:\n  3 bytes") == "cannot read last.ckpt: 3 bytes"
    assert shown("word " * 100).endswith(" …")
