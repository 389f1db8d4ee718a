"""The doctor reads the records of the domains that mail comes from, from a real DNS server, and says what to publish."""

from __future__ import annotations

import socket

import pytest

from app import cli, doctor, mail_doctor
from app.errors import DnsAway
from app.providers.dns import Dns
from app.providers.smtp import Smtp, Timeouts
from app.rules import mail_domain
from tests.cast import Cast
from tests.conftest import NOW
from tests.dns_server import serve
from tests.faulty_smtp import FaultySmtp

KEY = "v=DKIM1; k=rsa; p=" + "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A" * 12
WELL = {
    "example.com": {"TXT": ["v=spf1 include:relay.test -all", "something else"], "MX": ["10 mx.example.com."]},
    "relay.test": {"TXT": ["v=spf1 ip4:192.0.2.0/24 a mx ~all"]},
    "_dmarc.example.com": {"TXT": ["v=DMARC1; p=quarantine; rua=mailto:d@example.com"]},
    "n1._domainkey.example.com": {"TXT": [KEY]},
}
KEYS = [
    {"name": "n1._domainkey.example.com", "value": KEY, "state": "active"},
    {"name": "old._domainkey.example.com", "value": "v=DKIM1; p=x", "state": "retired"},
]


def seen(zone, name: str = "example.com", keys=()) -> dict[str, mail_doctor.Finding]:
    with serve(zone) as server:
        found = list(mail_doctor.domain(Dns([server]), name, keys))
    return {one.what.removesuffix(f" of {name}"): one for one in found}


def test_a_domain_that_is_well_says_so():
    found = seen(WELL, keys=KEYS)
    assert {what: one.good for what, one in found.items()} == {"spf": True, "dkim": True, "dmarc": True, "mail hosts": True}
    assert "3 of 10 lookups" in found["spf"].seen
    assert "_dmarc.example.com says quarantine" in found["dmarc"].seen


def test_a_domain_without_records_is_told_what_to_publish():
    found = seen({"example.com": {"A": ["192.0.2.1"]}}, keys=KEYS)
    assert {what: one.good for what, one in found.items()} == {"spf": False, "dkim": False, "dmarc": False, "mail hosts": True}
    assert 'Publish: example.com TXT "v=spf1' in found["spf"].seen
    assert f'Publish: n1._domainkey.example.com TXT "{KEY}"' in found["dkim"].seen
    assert 'Publish: _dmarc.example.com TXT "v=DMARC1; p=none"' in found["dmarc"].seen


@pytest.mark.parametrize(
    ("record", "more", "says"),
    [
        ("v=spf1 +all", {}, "lets anybody send"),
        ("v=spf1 all", {}, "lets anybody send"),
        ("v=spf1 ?!", {}, "not a record that receivers read"),
        ("v=spf1 include:missing.test -all", {}, "include:missing.test has no SPF record"),
        ("v=spf1 include:example.com -all", {}, "example.com includes itself"),
        ("v=spf1 " + " ".join(f"a:h{n}.test" for n in range(11)) + " -all", {}, "11 of 10 lookups"),
        ("v=spf1 include:deep.test -all", {"deep.test": ["v=spf1 " + " ".join(f"mx:h{n}.test" for n in range(10))]}, "11 of 10 lookups"),
        ("v=spf1 redirect=loop.test", {"loop.test": ["v=spf1 redirect=loop.test"]}, "loop.test includes itself"),
    ],
)
def test_an_spf_record_that_receivers_do_not_take_is_a_problem(record, more, says):
    zone = {"example.com": {"TXT": [record]}} | {name: {"TXT": texts} for name, texts in more.items()}
    found = seen(zone)["spf"]
    assert not found.good and says in found.seen


def test_records_that_include_each_other_without_end_cost_a_bounded_number_of_questions():
    """Each of fifty domains includes three others, and none the one before: followed to the end that would be 3^50 questions."""
    zone = {f"d{n}.test": {"TXT": ["v=spf1 " + " ".join(f"include:d{n + k}.test" for k in (1, 2, 3)) + " -all"]} for n in range(50)}
    found = seen(zone, "d0.test")["spf"]
    assert not found.good and "lookups" in found.seen


def test_two_spf_records_count_as_none():
    assert "2 SPF records" in seen({"example.com": {"TXT": ["v=spf1 -all", "v=spf1 a -all"]}})["spf"].seen


def test_the_macros_of_an_spf_record_cost_a_lookup_and_are_not_followed():
    found = seen({"example.com": {"TXT": ["v=spf1 include:%{i}.spf.test exists:%{i}.x.test ip6:2001:db8::/32 -all"]}})["spf"]
    assert found.good and "2 of 10 lookups" in found.seen


def test_a_key_that_is_not_the_one_that_signs_is_a_problem():
    found = seen({"example.com": {}, "n1._domainkey.example.com": {"TXT": ["v=DKIM1; p=another"]}}, keys=KEYS)["dkim"]
    assert not found.good and "is another key" in found.seen


def test_a_policy_of_the_domain_above_counts():
    zone = {"mail.example.com": {"A": ["192.0.2.1"]}, "_dmarc.example.com": {"TXT": ["v=DMARC1; p=reject"]}}
    assert seen(zone, "mail.example.com")["dmarc"].good
    broken = seen({"example.com": {}, "_dmarc.example.com": {"TXT": ["v=DMARC1; p=none", "v=DMARC1; p=reject"]}})["dmarc"]
    assert not broken.good and "broken or there twice" in broken.seen


def test_a_domain_that_takes_no_mail_is_a_problem():
    assert not seen({"example.com": {"MX": ["0 ."]}})["mail hosts"].good
    assert not seen({"example.com": {}})["mail hosts"].good


def test_a_dns_that_does_not_answer_is_one_finding():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        asked = Dns([silent.getsockname()], patience=0.2)
        with pytest.raises(DnsAway):
            asked.texts("example.com")
        (found,) = mail_doctor.domain(asked, "example.com")
    assert not found.good and "does not answer" in found.seen


def test_names_that_no_dns_could_hold_have_no_records():
    with serve({}) as server:
        asked = Dns([server])
        for name in ("a" * 64 + ".test", "..", "ä" * 70, ".".join(["a" * 60] * 5)):
            assert asked.texts(name) == []


def test_the_tree_walk_ends_below_the_top():
    assert mail_domain.parents("a.b.example.com") == ["a.b.example.com", "b.example.com", "example.com"]
    assert mail_domain.parents("localhost") == ["localhost"]
    assert len(mail_domain.parents(".".join("abcdefghijklm") + ".example.com")) == 8


def test_the_relay_is_looked_at_as_sending_does(settings):
    with FaultySmtp() as server:
        found = mail_doctor.relay(Smtp(server.url, timeouts=Timeouts(connect=5, command=5)))
    assert found.good and "without TLS" in found.seen
    away = mail_doctor.relay(Smtp("smtp://127.0.0.1:9", timeouts=Timeouts(connect=2, command=2)))
    assert not away.good and "takes no mail" in away.seen


def test_the_doctor_asks_for_the_senders_domains(settings, engine, monkeypatch, capsys):
    with engine.begin() as conn:
        Cast(conn, NOW)
    zone = {name.replace("example.com", "acorn.test"): records for name, records in WELL.items()}
    with serve(zone) as server:
        found = doctor.examine(settings, engine, NOW, Dns([server]))
        assert "spf of acorn.test" in {one.what for one in found}
        monkeypatch.setenv("DATABASE_URL", settings.database_url)
        cli.main(["doctor", "--home", str(settings.home), "--dns", f"127.0.0.1:{server[1]}"])
    assert "_dmarc.acorn.test says quarantine" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--dns", "not an address"])
