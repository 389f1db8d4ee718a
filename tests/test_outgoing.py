"""Calls of other systems: what may be called (X-20 to X-22), what is sent, when it ends, and how it is signed."""

from __future__ import annotations

import time

import pytest

from app.config import load
from app.errors import CallError, InputError, SettingError
from app.providers.outgoing import LIMIT, Caller, is_public, new_secret, signed
from tests.hooks import Hooks

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1"),
        *("64:ff9b:1::808:808", "::127.0.0.1", "::10.0.0.1", "2001:0:7f00:1::", "2001:0:808:808::80ff:fffe", "not an address", ""),
    ],
)
def test_an_address_inside_is_not_called(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808"])
def test_a_public_address_may_be_called(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://example.com:8443/",
        "https://example.com:99999/",
        "https:///path",
        "https://",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://exam ple.com/",
        "https://example.com/\r\nX-Injected: 1",
        "https://example.com\\@127.0.0.1/",
        "https://[::1/",
        "https://a..b\u2024c/",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_a_url_that_may_not_be_called(url):
    with pytest.raises(InputError):
        Caller().target(url)


def test_a_url_is_taken_apart_once():
    caller = Caller([("http", "127.0.0.1", 9000)])
    assert caller.target("HTTPS://Example.COM./a?b=c#d").place == ("https", "example.com", 443)
    assert caller.target("https://example.com/ä?b").path == "/%C3%A4?b"
    assert caller.target("https://münchen.example/").place[1] == "xn--mnchen-3ya.example"
    assert caller.target("http://127.0.0.1:9000/").listed
    with pytest.raises(InputError):
        caller.target("http://127.0.0.1:9001/")


@pytest.mark.parametrize("found", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:169.254.169.254"], ["64:ff9b::7f00:1", PUBLIC]])
def test_all_addresses_of_a_name_must_be_public(found):
    with pytest.raises(CallError) as caught:
        Caller(resolve=lambda *_: found).post("https://hooks.example.com/", b"", {})
    assert caught.value.outcome == "refused"


def test_numbers_in_disguise_are_resolved_and_refused():
    for url in (
        "https://0x7f.1/",
        "https://2130706433/",
        "https://127.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
    ):
        with pytest.raises(CallError) as caught:
            Caller().post(url, b"", {})
        assert caught.value.outcome in ("refused", "unsent"), url
        assert "public" in str(caught.value) or "resolved" in str(caught.value)


def test_a_name_is_resolved_once_so_that_it_cannot_change_its_mind(authority):
    """A rebinding resolver: public when it is checked, inside when it is asked again. It is not asked again."""
    answers = [[PUBLIC], ["127.0.0.1"]]
    with Hooks(tls=authority[0]) as server:
        caller = Caller([], resolve=lambda *_: answers.pop(0), context=authority[1], seconds=0.5)
        with pytest.raises(CallError) as caught:
            caller.post("https://127.0.0.1.example.com/", b"{}", {})
        assert caught.value.outcome == "unsent"
        assert len(answers) == 1
        assert server.requests == []


def test_the_checked_address_is_called_under_the_names_host_and_certificate(authority):
    with Hooks(tls=authority[0]) as server:
        asked = []

        def resolve(host, port):
            asked.append((host, port))
            return ["127.0.0.1"]

        caller = Caller([("https", "hooks.example.com", server.port)], resolve=resolve, context=authority[1])
        answer = caller.post(f"https://hooks.example.com:{server.port}/a?b=1", b"{}", {"X-Test": "1"})
        assert (answer.status, answer.body) == (200, b"ok")
        assert asked == [("hooks.example.com", server.port)]
        path, headers, body = server.requests[0]
        assert (path, body) == ("/a?b=1", b"{}")
        assert headers["host"] == f"hooks.example.com:{server.port}"
        assert headers["x-test"] == "1" and "cookie" not in headers
        stranger = Caller([("https", "other.example.com", server.port)], resolve=resolve, context=authority[1])
        with pytest.raises(CallError, match="certificate") as caught:
            stranger.post(f"https://other.example.com:{server.port}/", b"{}", {})
        assert caught.value.outcome == "unsent"
        assert len(server.requests) == 1


def test_no_redirect_is_followed_no_proxy_used_no_cookie_kept(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with Hooks([(302, {"Location": "http://127.0.0.1/", "Set-Cookie": "a=b"}, b"")]) as server:
        caller = Caller([server.place])
        assert caller.post(server.url, b"", {}).status == 302
        assert caller.post(server.url, b"", {}).status == 200
        assert server.sent("cookie") == [None, None]


def test_the_whole_call_ends_in_time():
    with Hooks(["drip"]) as server:
        began = time.monotonic()
        with pytest.raises(CallError) as caught:
            Caller([server.place], seconds=0.6).post(server.url, b"", {})
        assert caught.value.outcome == "unknown"
        assert time.monotonic() - began < 3


def test_a_name_that_takes_too_long_is_given_up():
    with pytest.raises(CallError) as caught:
        Caller(resolve=lambda *_: time.sleep(2) or [PUBLIC], seconds=0.2).post("https://example.com/", b"", {})
    assert caught.value.outcome == "unsent"


def test_no_more_than_a_megabyte_is_read():
    with Hooks([(200, {}, b"x" * (3 * LIMIT))]) as server:
        assert len(Caller([server.place]).post(server.url, b"", {}).body) == LIMIT


def test_what_is_fetched_is_read_whole_within_its_limit_or_not_taken():
    answers = [(200, {}, b"x" * 90), (200, {}, b"x" * 90), (404, {}, b"no"), (200, {"Content-Length": "90"}, b"half")]
    with Hooks(answers) as server:
        caller = Caller([server.place])
        assert caller.get(f"{server.url}/a?b").body == b"x" * 90
        assert caller.get(server.url, 50).body == b"x" * 50
        assert caller.get(server.url).status == 404
        with pytest.raises(CallError, match="too early") as caught:
            Caller([server.place], seconds=0.5).get(server.url)
        assert caught.value.outcome == "unknown"
        assert server.requests[0][0] == "/a?b" and server.requests[0][2] == b""
        assert "content-length" not in server.requests[0][1]
    with pytest.raises(CallError) as caught:
        Caller().get("https://127.0.0.1/")
    assert caught.value.outcome == "refused"


def test_what_may_have_been_taken_is_told_from_what_was_not():
    with Hooks(["close"]) as server:
        with pytest.raises(CallError) as caught:
            Caller([server.place]).post(server.url, b"", {})
        assert caught.value.outcome == "unknown"
        place, url = server.place, server.url
    with pytest.raises(CallError) as caught:
        Caller([place]).post(url, b"", {})
    assert caught.value.outcome == "unsent"


def test_a_header_cannot_hold_another():
    with Hooks() as server:
        with pytest.raises(CallError) as caught:
            Caller([server.place]).post(server.url, b"", {"X": "a\r\nY: b"})
        assert caught.value.outcome == "refused" and server.requests == []


def test_signatures_are_those_of_standard_webhooks():
    """The vector of the specification's reference libraries."""
    secret, ident, at = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
    headers = signed([secret], ident, at, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": ident,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    both = signed([new_secret(), secret], ident, at, b'{"test": 2432232314}')["webhook-signature"].split(" ")
    assert len(both) == 2 and both[1] == headers["webhook-signature"]


def test_the_setting_names_places(tmp_path):
    def places(value):
        return load({"NURTURE_HOME": str(tmp_path), "NURTURE_ALLOW_HOSTS": value}).allow_hosts

    assert places("crm.internal, http://127.0.0.1:9000 https://[::1]:8443") == {
        ("https", "crm.internal", 443),
        ("http", "127.0.0.1", 9000),
        ("https", "[::1]", 8443),
    }
    assert places("") == frozenset()
    for bad in ("ftp://x", "https://user@x", "https://x/path", "x:port", "https://"):
        with pytest.raises(SettingError, match="NURTURE_ALLOW_HOSTS"):
            places(bad)
