"""The benchmark's table says what was measured, and every row of this package is found."""

import json

import pytest

from bench.__main__ import main, rows
from bench.table import Line, render


def test_a_line_is_judged_by_its_ratio_or_by_itself():
    assert Line("A", "accepted", 70, "events/s", 0.7, 100).met
    assert not Line("A", "accepted", 69, "events/s", 0.7, 100).met
    assert Line("B", "advanced", 8000, "events/s", 8000).met
    assert not Line("B", "advanced", 7999, "events/s", 8000).met
    assert Line("F", "p99", 60, "ms", 60, at_most=True).met
    assert not Line("F", "p99", 61, "ms", 60, at_most=True).met
    assert not Line("C", "cost", 1.2, "µs", 1.15, 1.0, at_most=True).met


def test_the_table_and_its_json_say_the_same():
    line = Line("A", "accepted", 28_028, "events/s", 0.7, 21_154, note="on one machine")
    shown = render([line, Line("F", "p99", 17.25, "ms", 60, at_most=True)])
    assert "28,028 events/s  21,154 events/s  1.32   ≥ 0.7 ×" in shown
    assert "17.2 ms" in shown
    assert "≤ 60 ms" in shown
    assert shown.endswith("A: on one machine")
    said = json.loads(json.dumps(line.as_json()))
    assert (said["row"], round(said["ratio"], 2), said["met"]) == ("A", 1.32, True)


def test_rows_are_found_and_others_refused(capsys):
    assert "A" in rows()
    with pytest.raises(SystemExit):
        main(["Z9"])
    assert "no such row: Z9" in capsys.readouterr().err
