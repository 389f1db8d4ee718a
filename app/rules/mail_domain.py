"""The records with which a domain says who may send its mail: SPF (RFC 7208), DKIM keys (RFC 6376), DMARC (RFC 9989). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPF_LOOKUPS = 10  # RFC 7208 4.6.4 (B-09)
ASKING = frozenset({"include", "a", "mx", "ptr", "exists", "redirect"})  # what costs a lookup
_TERM = re.compile(r"(?P<qualifier>[+?~-]?)(?P<name>[a-z][a-z0-9_.-]*)(?:[:=](?P<value>\S*)|/\S*)?", re.IGNORECASE)
_POLICIES = ("none", "quarantine", "reject")


@dataclass(frozen=True, slots=True)
class Term:
    """A mechanism (`qualifier` +, -, ~ or ?) or a modifier of an SPF record. `value` is what stands behind the colon or equals sign."""

    name: str
    value: str
    qualifier: str = "+"

    @property
    def asks(self) -> bool:
        return self.name in ASKING

    @property
    def follows(self) -> str | None:
        """The domain whose record counts as well; one with a macro cannot be told beforehand."""
        return self.value if self.name in ("include", "redirect") and self.value and "%" not in self.value else None


def spf_records(texts: Sequence[str]) -> list[str]:
    """Those TXT records that are SPF records; more than one is an error of the domain."""
    return [one for one in texts if one.lower() == "v=spf1" or one.lower().startswith("v=spf1 ")]


def spf_terms(record: str) -> list[Term] | None:
    """What an SPF record says, or None where it is not one that a receiver would read."""
    terms = []
    for word in record.split()[1:]:
        match = _TERM.fullmatch(word)
        if match is None:
            return None
        terms.append(Term(match["name"].lower(), match["value"] or "", match["qualifier"] or "+"))
    return terms


def everybody(terms: Sequence[Term]) -> bool:
    """Whether the record lets anybody send: `+all` is no protection at all."""
    return any(one.name == "all" and one.qualifier == "+" for one in terms)


def tags(record: str) -> Mapping[str, str]:
    """The tags of a DKIM or DMARC record, without their white space."""
    pairs = (part.partition("=") for part in record.split(";"))
    return {name.strip().lower(): re.sub(r"\s+", "", value) for name, sign, value in pairs if sign}


def dmarc_policy(texts: Sequence[str]) -> str | None:
    """`none`, `quarantine` or `reject`; None where there is no DMARC record, more than one, or one without a policy that is known."""
    found = [told for one in texts if (told := tags(one)).get("v", "").upper() == "DMARC1"]
    policy = found[0].get("p", "").lower() if len(found) == 1 else ""
    return policy if policy in _POLICIES else None


def dkim_matches(texts: Sequence[str], record: str) -> bool | None:
    """Whether the published key is the one of `record`; None where none is published. An empty `p` says that the key was withdrawn."""
    found = [told for one in texts if "p" in (told := tags(one))]
    return any(one["p"] == tags(record)["p"] for one in found) if found else None


def parents(domain: str) -> list[str]:
    """The domain and those above it down to two labels: where a DMARC record may stand (the tree walk of RFC 9989, at most 8 steps)."""
    labels = domain.lower().rstrip(".").split(".")
    above = [".".join(labels[place:]) for place in range(len(labels) - 1)]
    return [above[0], *above[1:][-7:]] if above else [domain]
