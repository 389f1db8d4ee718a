"""The benchmark's table says what was measured, and every row of this package is found."""

import json

import pytest
from ruamel.yaml import YAML

from app.rules.triggers import KINDS
from bench import deliver, folder, scale, timers
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


def test_rows_c_d_and_g_measure_the_engine_at_a_small_size():
    """Each raises unless exactly what it has posted was advanced."""
    (more_campaigns,) = scale.campaigns(few=20, many=60, accounts=100, events=300, rounds=1)
    active, spread = scale.contacts(few=50, many=500, events=300, rounds=1)
    (due,) = timers.due(timers=600, rounds=1)
    assert (more_campaigns.row, active.row, spread.row, due.row) == ("C", "D", "D", "G")
    assert min(more_campaigns.ours, active.ours, spread.ours, due.ours) > 0
    assert active.reference == spread.reference
    assert "300 events" in active.note


def test_rows_e_and_e2_send_the_same_mail_without_and_with_a_signature():
    """Each raises unless the relay accepted everything, signed or not as it should be."""
    (plain,) = deliver.sent(messages=60, rounds=1)
    (signed,) = deliver.signed(messages=60, rounds=1)
    assert (plain.row, plain.target, signed.row, signed.target) == ("E", 0.7, "E2", 0.25)
    assert min(plain.ours, plain.reference, signed.ours, signed.reference) > 0
    assert {"E", "E2"} <= set(rows())


def test_mixed_campaigns_use_every_kind_of_trigger_but_those_of_people():
    written = [YAML(typ="safe").load(text) for text in folder.mixed(500).values()]
    used = {kind for campaign in written for kind in campaign["trigger"] if kind != "where"}
    assert used == set(KINDS) - {"survey", "manual"}
    assert all({"audience", "exit_when"} <= campaign.keys() for campaign in written)
    assert sum("goal" in campaign for campaign in written) == 375
