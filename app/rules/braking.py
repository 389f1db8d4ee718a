"""When mail is stopped because people complain about it or because it bounces: rates held against the limits of `lifecycle.yaml`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.rules.lifecycle import BounceBrake, ComplaintBrake

WINDOWS = (timedelta(hours=24), timedelta(days=7))
ENDS_BELOW = 0.8  # of its limit: a warning does not come and go with every complaint

# Whose mailboxes the domains are that most people have theirs at. Any other domain stands for itself.
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "Google": ("gmail.com", "googlemail.com"),
    "Microsoft": ("outlook.com", "hotmail.com", "live.com", "msn.com", "hotmail.co.uk", "hotmail.fr", "live.co.uk", "outlook.de"),
    "Yahoo": ("yahoo.com", "ymail.com", "rocketmail.com", "aol.com", "yahoo.co.uk", "yahoo.fr", "yahoo.de", "yahoo.co.in"),
    "Apple": ("icloud.com", "me.com", "mac.com"),
    "United Internet": ("gmx.de", "gmx.net", "gmx.at", "gmx.ch", "gmx.com", "web.de", "mail.com", "1und1.de"),
    "Proton": ("proton.me", "protonmail.com", "pm.me"),
}
_BY_DOMAIN = {domain: name for name, domains in _PROVIDERS.items() for domain in domains}


@dataclass(frozen=True, slots=True)
class Count:
    """What became of the mail of a sending domain since a moment, at one mailbox provider, or (None) at all together. `window` is the
    longest that was looked back."""

    domain: str
    provider: str | None
    window: timedelta
    since: datetime
    delivered: int
    complained: int

    @property
    def rate(self) -> float:
        """Whoever complains about mail of before the window counts as well, so of nothing delivered it is everything."""
        return min(self.complained / self.delivered, 1.0) if self.delivered else float(self.complained > 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """A limit that is reached: `action` is warn or pause. `numbers` are what the brake keeps and the ledger shows."""

    action: str
    domain: str | None
    provider: str | None
    numbers: Mapping[str, Any]


def provider_of(domain: str) -> str:
    """The mailbox provider of an address's domain; "unknown" for none."""
    domain = domain.lower()
    return _BY_DOMAIN.get(domain, domain) or "unknown"


def together(counts: Iterable[Count]) -> list[Count]:
    """Counts by domain of the recipients, as sums by mailbox provider and over all."""
    sums: dict[tuple[str, str | None, timedelta], Count] = {}
    for one in counts:
        for provider in (provider_of(one.provider or ""), None):
            key = (one.domain, provider, one.window)
            known = sums.get(key)
            sums[key] = Count(
                one.domain,
                provider,
                one.window,
                min(one.since, known.since) if known else one.since,
                one.delivered + (known.delivered if known else 0),
                one.complained + (known.complained if known else 0),
            )
    return list(sums.values())


def complaints(counts: Iterable[Count], limits: ComplaintBrake) -> list[Finding]:
    """The brakes that these counts ask for: a domain is paused once, for the provider and window where its rate is highest; a warning is
    given over all, and for each provider that got enough mail (a tenth of `delivered`) for a rate of its own to mean something."""
    paused: dict[str, Count] = {}
    warned: dict[tuple[str, str | None], Count] = {}
    for one in counts:
        if one.rate >= limits.pause and one.delivered >= limits.delivered:
            paused[one.domain] = max(paused.get(one.domain, one), one, key=lambda count: count.rate)
        elif one.rate >= limits.warn and (one.provider is None or one.delivered >= limits.delivered / 10):
            key = (one.domain, one.provider)
            warned[key] = max(warned.get(key, one), one, key=lambda count: count.rate)
    found = [Finding("pause", one.domain, None, _numbers(one, limits.pause)) for one in paused.values()]
    return found + [Finding("warn", one.domain, one.provider, _numbers(one, limits.warn)) for one in warned.values()]


def is_over(counts: Iterable[Count], domain: str, provider: str | None, limits: ComplaintBrake) -> bool:
    """Whether a warning has come to its end: the rate is well below what it warns of."""
    mine = [one for one in counts if (one.domain, one.provider) == (domain, provider)]
    return all(one.rate < limits.warn * ENDS_BELOW for one in mine)


def bounces(sent: int, bounced: int, limits: BounceBrake) -> Mapping[str, Any] | None:
    """The numbers of a campaign whose first mails bounce too often; None while they do not, or while there are too few to tell."""
    if sent < limits.after or bounced < limits.pause * sent or not bounced:
        return None
    return {"sent": sent, "bounced": bounced, "rate": round(bounced / sent, 6), "limit": limits.pause}


def _numbers(one: Count, limit: float) -> dict[str, Any]:
    return {
        "complained": one.complained,
        "delivered": one.delivered,
        "rate": round(one.rate, 6),
        "limit": limit,
        "provider": one.provider,
        "hours": round(one.window.total_seconds() / 3600),
        "since": one.since.isoformat(),
    }
