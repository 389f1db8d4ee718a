"""What is refused before a view: strange hosts, forms too large, callers too fast; and what logs hold of anybody."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import structlog

from app import create_app, logs
from app.config import load
from app.errors import SettingError
from app.flow import access
from app.web.guards import FORM_BYTES, Pace

NOW = datetime.now(UTC)
EVIL = {"Host": "evil.example.net"}


@pytest.fixture
def behind(settings):
    """Builds the application as it stands in the internet, with other names of its own."""
    made = []

    def build(*hosts: str):
        made.append(create_app(replace(settings, base_url="https://mail.example.com", hosts=frozenset(hosts))))
        return made[-1].test_client()

    yield build
    for app in made:
        app.extensions["nurture"].engine.dispose()


# Hosts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/console", "/console/accounts", "/u/x", "/p/x", "/s/x", "/c/x", "/v/x"])
def test_x36_pages_are_served_under_our_names_only(behind, path):
    client = behind("console.internal")
    for host in ("mail.example.com", "MAIL.example.com:443", "mail.example.com.", "console.internal:8000", "localhost:8000", "[::1]:8000"):
        assert client.get(path, headers={"Host": host}).status_code != 421, host
    for host in ("evil.example.net", "mail.example.com.evil.net", "mail.example.com@evil.net", "127.evil.net", "[::1", "10.0.0.1", ""):
        assert client.get(path, headers={"Host": host}).status_code in (400, 421), host


def test_x36_programs_and_health_checks_may_use_any_name(behind):
    client = behind()
    assert client.get("/healthz", headers=EVIL).status_code == 200
    assert client.get("/api/v1/accounts", headers=EVIL).status_code == 401
    assert client.post("/v1/track", headers=EVIL).status_code == 401


def test_x36_a_forwarded_host_counts_for_nothing(behind):
    told = {"X-Forwarded-Host": "evil.example.net", "Forwarded": "host=evil.example.net"}
    assert behind().get("/console", headers=told | {"Host": "mail.example.com"}).status_code == 401
    assert behind().get("/console", headers={"X-Forwarded-Host": "mail.example.com", **EVIL}).status_code == 421


def test_the_setting_of_hosts(tmp_path):
    def told(**env):
        return load({"NURTURE_HOME": str(tmp_path), **env})

    assert told(NURTURE_HOSTS="Console.Internal, [::2] app").hosts == {"console.internal", "::2", "app"}
    assert told().hosts == frozenset()
    for bad in ("https://x", "x:80", "a b/c", "*"):
        with pytest.raises(SettingError, match="NURTURE_HOSTS"):
            told(NURTURE_HOSTS=bad)


# Sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/u/x", "/s/x", "/console/holds"])
def test_x38_a_form_is_small(app, client, path):
    with app.extensions["nurture"].engine.begin() as conn:
        token = access.create_sign_in(conn, NOW)
    client.get(f"/console/sign-in/{token}")
    big = client.post(path, data={"comment": "x" * FORM_BYTES})
    assert big.status_code == 413 and f"{FORM_BYTES:,} bytes" in big.text
    assert client.post(path, data={"comment": "x" * 5000}).status_code in (400, 404)


# Pace ------------------------------------------------------------------------------------------------------------------


def test_x39_a_pace_lets_a_burst_through_and_then_so_many_a_second():
    pace = Pace(burst=3, per_second=2)
    assert [pace.wait("a", 100.0) for _ in range(3)] == [0, 0, 0]
    assert pace.wait("a", 100.0) == pytest.approx(0.5)
    assert pace.wait("b", 100.0) == 0
    assert pace.wait("a", 100.5) == 0
    assert pace.wait("a", 100.5) > 0
    assert [pace.wait("a", 110.0) for _ in range(3)] == [0, 0, 0]
    for number in range(30_000):  # names that strangers make up do not fill the memory
        pace.wait(f"c{number}", 111.0)
    assert len(pace._free_at) <= 10_000


def test_x39_a_key_that_asks_without_end_is_told_to_wait_and_the_others_are_not(app, client):
    with app.extensions["nurture"].engine.begin() as conn:
        busy, calm = (access.create_key(conn, name, "read", NOW) for name in ("busy", "calm"))
    pace, name = app.extensions["paces"].api, busy.split("_")[1]
    while pace.wait(name, time.monotonic() + 60) == 0:  # as if it had asked for a minute
        pass
    answer = client.get("/api/v1/holds", headers={"Authorization": f"Bearer {busy}"})
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
    assert client.get("/api/v1/holds", headers={"Authorization": f"Bearer {calm}"}).status_code == 200


def test_x39_sign_in_links_cannot_be_tried_without_end(app, client):
    seen = [client.get(f"/console/sign-in/wrong-{number}").status_code for number in range(40)]
    assert seen[:30] == [401] * 30 and seen[-1] == 429
    with app.extensions["nurture"].engine.begin() as conn:
        token = access.create_sign_in(conn, NOW)
    elsewhere = client.get(f"/console/sign-in/{token}", environ_base={"REMOTE_ADDR": "198.51.100.9"})
    assert elsewhere.status_code == 303


# Logs ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written():
    """What is logged, line by line."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    stream = io.StringIO()
    logs.start("a secret", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_x43_a_line_is_json_and_nobody_outside_writes_one_of_his_own(written):
    structlog.get_logger("web").warning("refused", path='/x\r\n{"event": "forged"}\x1b[2J\u2028', status=404)
    logging.getLogger("nurture.work").error("%s failed: %s", "job\nforged", "why")
    first, second = written()
    assert (first["event"], first["level"], first["logger"], first["status"]) == ("refused", "warning", "web", 404)
    assert first["path"].startswith("/x\r\n{") and second["event"] == "job\nforged failed: why"
    assert datetime.fromisoformat(first["at"]).tzinfo


def test_x43_no_line_names_a_person_or_tells_a_secret(written):
    log = logging.getLogger("nurture.test")
    log.info("mail to Ada.L+x@example.com bounced")
    log.info("ada.l+X@Example.com and bob@example.com", extra={})
    log.warning("cannot reach postgresql://nurture:hunter2@db.internal/nurture with nk_0123456789_AbC-dEf or whsec_MfKQ9r8G")
    structlog.get_logger("web").info("x", person="evelyn@example.org", url="smtps://me@there.example:pa55@relay.example.com")
    try:
        raise ValueError("in a traceback: mallory@example.com")
    except ValueError:
        log.exception("bad")
    log.debug("ada@example.com")
    lines = written()
    said = json.dumps(lines)
    for told in ("Ada", "ada", "bob", "evelyn", "mallory", "hunter2", "AbC-dEf", "MfKQ", "pa55"):
        assert told not in said, told
    marks = re.findall(r"~([0-9a-f]{8})@", lines[0]["event"] + lines[1]["event"])
    assert marks[0] == marks[1] != marks[2]
    assert "db.internal/nurture" in said and "nk_0123456789_" in said and "ValueError" in said
    assert len(lines) == 5


def test_x43_who_comes_in_and_who_is_refused_is_written_down(app, client, written):
    with app.extensions["nurture"].engine.begin() as conn:
        token, key = access.create_sign_in(conn, NOW), access.create_key(conn, "posts", "write", NOW)
    client.get(f"/console/sign-in/{token}x")
    client.get(f"/console/sign-in/{token}")
    client.post("/console/sign-out", data={"csrf_token": "made up"})
    for given in (key, key + "x"):
        client.get("/api/v1/holds", headers={"Authorization": f"Bearer {given}"})
    lines = [line for line in written() if line["logger"] == "access"]
    assert [line["event"] for line in lines] == ["sign-in refused", "signed in", "form refused", "key refused", "key refused"]
    assert all(line["network"] == "127.0.0.0/24" for line in lines)
    assert lines[3]["key"] == key.split("_")[1] and "write" in lines[3]["problem"]
    assert token not in json.dumps(lines) and key.rpartition("_")[2] not in json.dumps(lines)


def test_x43_an_error_of_the_database_holds_no_values(engine):
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    with engine.connect() as conn, pytest.raises(DBAPIError) as caught:
        conn.execute(text("select cast(:address as text) || nothing"), {"address": "ada@example.com"})
    assert "ada@example.com" not in str(caught.value)


def test_x43_masking_takes_no_time_to_speak_of():
    began = time.perf_counter()
    logs.masked("@" * 100_000 + "a" * 100_000 + "@" + "b." * 50_000, "s")
    assert time.perf_counter() - began < 2
