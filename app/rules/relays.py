"""What the relays of known email services want to be told, and what they change on the way. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

KEY = "nurture_send"  # what a service sends back with its reports; an opaque token, never anything of a person (P-13)


@dataclass(frozen=True, slots=True)
class Relay:
    """An email service by the end of its relay's host name. `header` carries our token as `value` spells it, and the service takes it out
    or may; `rewrites` are headers that it writes anew (M-02). None of these may be covered by a signature of ours."""

    name: str
    hosts: tuple[str, ...]
    header: str
    value: Callable[[str], str]
    rewrites: frozenset[str] = frozenset()

    @property
    def unsigned(self) -> frozenset[str]:
        return self.rewrites | {self.header.lower()}


def _json(token: str) -> str:
    return f'{{"{KEY}": "{token}"}}'


_ALL = (
    Relay(
        "ses",
        (".amazonaws.com", ".amazonaws.com.cn"),
        "X-SES-MESSAGE-TAGS",
        lambda token: f"{KEY}={token}",
        frozenset({"message-id", "date"}),
    ),
    Relay(
        "sendgrid", ("smtp.sendgrid.net", "smtp.eu.sendgrid.net"), "X-SMTPAPI", lambda token: f'{{"unique_args": {{"{KEY}": "{token}"}}}}'
    ),
    Relay("mailgun", ("smtp.mailgun.org", "smtp.eu.mailgun.org"), "X-Mailgun-Variables", _json),
    Relay("postmark", (".postmarkapp.com",), f"X-PM-Metadata-{KEY}", lambda token: token),
)
RELAYS: Mapping[str, Relay] = {one.name: one for one in _ALL}


def relay_of(host: str | None) -> Relay | None:
    """The service whose relay that is; None for one that is not known, which is told nothing."""
    host = "." + (host or "").rstrip(".").lower()
    return next((one for one in _ALL if any(host.endswith("." + end.lstrip(".")) for end in one.hosts)), None)
