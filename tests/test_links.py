"""The tokens of links in mails: email-standards 4.6, K-01 to K-05."""

import base64
import re
import time
from datetime import timedelta
from itertools import product
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from conftest import NOW
from hypothesis import given
from hypothesis import strategies as st

from app.config import load
from app.errors import SettingError
from app.flow.links import KINDS, MAILBOXES, MAX_INDEX, Keyring, Links, load_keyring
from app.models import token_key

RING = Keyring({1: b"a" * 32, 2: b"b" * 32}, 2)
LINKS = Links("https://mail.example.com", RING)
MESSAGE = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")


def make(kind, message=MESSAGE, index=0, links=LINKS):
    """The token of a link of `kind`."""
    url = links.click(message, index) if kind == "click" else getattr(links, kind)(message)
    return urlsplit(url).path.split("/")[2].removesuffix(".gif")


def test_links_look_as_the_contract_says():
    token = make("click", index=3)
    assert LINKS.click(MESSAGE, 3) == f"https://mail.example.com/c/{token}"
    assert LINKS.open(MESSAGE) == f"https://mail.example.com/o/{make('open')}.gif"
    assert LINKS.unsubscribe(MESSAGE) == f"https://mail.example.com/u/{make('unsubscribe')}"
    assert LINKS.preferences(MESSAGE) == f"https://mail.example.com/p/{make('preferences')}"
    assert LINKS.view(MESSAGE) == f"https://mail.example.com/v/{make('view')}"
    assert LINKS.survey(MESSAGE) == f"https://mail.example.com/s/{make('survey')}"
    assert LINKS.survey(MESSAGE, 0) == f"https://mail.example.com/s/{make('survey')}/0"


@pytest.mark.parametrize(("made", "read"), list(product(KINDS, KINDS)))
def test_k01_a_token_is_good_for_its_own_kind_only(made, read):
    assert LINKS.read(make(made), read) == ((MESSAGE, 0) if made == read else None)


@given(message=st.uuids(), index=st.integers(0, MAX_INDEX))
def test_a_token_is_48_characters_and_gives_back_what_it_was_made_of(message, index):
    token = make("click", message, index)
    assert len(token) == 48
    assert LINKS.read(token, "click") == (message, index)
    assert token[-1] not in "-_"  # K-04


def test_k04_no_link_ends_in_punctuation():
    assert all(LINKS.unsubscribe(uuid4())[-1].isalnum() for _ in range(2000))


def test_every_flipped_bit_is_refused():
    token = make("unsubscribe")
    raw = bytearray(base64.urlsafe_b64decode(token))
    for bit in range(len(raw) * 8):
        raw[bit // 8] ^= 1 << bit % 8
        assert LINKS.read(base64.urlsafe_b64encode(raw).decode(), "unsubscribe") is None, bit
        raw[bit // 8] ^= 1 << bit % 8
    assert LINKS.read(base64.urlsafe_b64encode(raw).decode(), "unsubscribe") == (MESSAGE, 0)


@given(st.text(max_size=60))
def test_rubbish_is_refused(token):
    assert LINKS.read(token, "click") is None


@pytest.mark.parametrize("change", ["{0}=", " {0}", "{0}\n", "{0}A", "\u00e9{0}", "."])
def test_a_token_with_anything_around_it_is_refused(change):
    assert LINKS.read(change.format(make("click")), "click") is None


def test_k05_an_unknown_key_is_a_bad_token():
    other = Links("https://mail.example.com", Keyring({9: b"a" * 32}, 9))
    token = make("click", links=other)
    assert LINKS.read(token, "click") is None
    assert not LINKS.knows(token)
    assert LINKS.knows(make("click"))


def test_a_token_of_another_installation_with_the_same_key_id_is_refused():
    other = Links("https://mail.example.com", Keyring({2: b"c" * 32}, 2))
    assert LINKS.read(make("click", links=other), "click") is None


def test_k02_old_keys_verify_after_a_new_one_came(engine):
    with engine.begin() as conn:
        old = Links("https://mail.example.com", load_keyring(conn))
        token = make("unsubscribe", links=old)
        page = old.nonce(token, "survey")
        conn.execute(token_key.insert().values(kid=2, secret=b"n" * 32, created_at=NOW + timedelta(days=3650)))
        new = Links("https://mail.example.com", load_keyring(conn))
    assert new.keyring.current == 2
    assert new.read(token, "unsubscribe") == (MESSAGE, 0)
    assert new.nonce(token, "survey") == page
    assert base64.urlsafe_b64decode(make("unsubscribe", links=new))[0] == 2
    assert old.read(make("unsubscribe", links=new), "unsubscribe") is None


def test_k02_each_purpose_has_a_key_of_its_own():
    tokens = [base64.urlsafe_b64decode(make(kind)) for kind in KINDS]
    assert len({token[20:] for token in tokens}) == len(KINDS)
    assert LINKS.nonce("a" * 48, "survey") != LINKS.nonce("a" * 48, "preferences") != LINKS.nonce("b" * 48, "preferences")


def test_k03_a_token_holds_the_message_and_nothing_else():
    raw = base64.urlsafe_b64decode(make("click", index=7))
    assert raw[2:18] == MESSAGE.bytes
    assert len(raw) == 36


def test_a_link_number_past_the_end_is_an_error():
    with pytest.raises(ValueError, match="4096"):
        LINKS.click(MESSAGE, MAX_INDEX + 1)


def test_a_token_costs_microseconds():
    best = min(_seconds(lambda: LINKS.click(MESSAGE, 5)) for _ in range(5)) / 2000
    assert best < 20e-6


def _seconds(call):
    start = time.perf_counter()
    for _ in range(2000):
        call()
    return time.perf_counter() - start


# Addresses that mail comes back to ------------------------------------------------------------------------------------


@given(message=st.uuids(), kind=st.sampled_from(sorted(MAILBOXES)))
def test_m12_an_address_names_its_message_and_fits_an_envelope(message, kind):
    address = LINKS.mailbox(message, kind, "bounce.example.com")
    local, _, domain = address.partition("@")
    assert domain == "bounce.example.com" and len(local) == 42 <= 64 and re.fullmatch(r"[bur]\+[a-z2-7]{40}", local)
    for seen in (address, address.upper(), local, f" {local} "):
        assert LINKS.read_mailbox(seen) == (kind, message)


@pytest.mark.parametrize(("made", "read"), list(product(MAILBOXES, MAILBOXES)))
def test_u11_a_token_of_an_address_is_good_for_its_own_kind_only(made, read):
    token = LINKS.short_token(MESSAGE, made)
    assert LINKS.read_short(token, read) == (MESSAGE if made == read else None)
    address = f"{MAILBOXES[read]}+{token}@bounce.example.com"
    assert LINKS.read_mailbox(address) == ((read, MESSAGE) if made == read else None)


def test_an_address_that_was_not_made_here_names_nothing():
    token = LINKS.short_token(MESSAGE)
    raw = bytearray(base64.b32decode(token.upper()))
    for bit in range(len(raw) * 8):
        raw[bit // 8] ^= 1 << bit % 8
        assert LINKS.read_short(base64.b32encode(bytes(raw)).decode()) is None
        raw[bit // 8] ^= 1 << bit % 8
    for address in ("", "b", "b+", f"b+{token[:-1]}", f"b+{token}a", f"x+{token}", f"b-{token}", f"b+ {token}", "b+" + "ſ" * 40):
        assert LINKS.read_mailbox(address) is None


def test_a_new_key_leaves_the_addresses_of_old_mails_good():
    old = Links("https://mail.example.com", Keyring({1: b"a" * 32}, 1)).mailbox(MESSAGE, "bounce", "bounce.example.com")
    assert LINKS.read_mailbox(old) == ("bounce", MESSAGE)
    assert Links("https://mail.example.com", Keyring({2: b"b" * 32}, 2)).read_mailbox(old) is None


def test_the_domain_of_these_addresses_is_a_setting(tmp_path):
    def domain(value):
        return load({"NURTURE_HOME": str(tmp_path), "NURTURE_INBOUND_DOMAIN": value}).inbound_domain

    assert domain("") is None
    assert domain("Bounce.Example.com.") == "bounce.example.com" and domain("b.xn--bcher-kva.example") == "b.xn--bcher-kva.example"
    for wrong in ("localhost", "b@example.com", "bücher.example", "b..example.com", "-b.example.com", "a." * 120 + "com", "x y.example"):
        with pytest.raises(SettingError, match="NURTURE_INBOUND_DOMAIN"):
            domain(wrong)
