"""What a mail that came in is, and what it says of our messages: bounce, complaint, unsubscription, a machine's answer, a person's.

Decides nothing about addresses, only reads (I-01 to I-05). A mail that is nothing of this is `other`, and is kept and shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from email.message import Message

from flufl.bounce import all_failures
from mailparser_reply import EmailReplyParser

from app.flow.inbound.parse import Fields, Mail, address_in, first, lines_of
from app.rules.delivery import enhanced
from app.rules.reports import Report

KINDS = ("bounce", "delay", "delivery", "complaint", "feedback", "unsubscribe", "auto_reply", "reply", "other", "unreadable")
DIAGNOSTIC_KEPT = 2000
REPLY_KEPT = 16_000  # characters of an answer that are looked at
LANGUAGES = ("en", "de", "fr", "es", "it", "nl", "pl", "sv", "da", "fi", "cs", "ja", "ko", "zh")

# Our addresses, and what only looks like one: somebody has made it up, or it was cut on the way.
_OURS = re.compile(r"(?<![\w.+-])([bur]\+[a-z0-9]{8,80})@", re.IGNORECASE)
_OWN_TOKEN = re.compile(r"[a-z2-7]{40}", re.IGNORECASE)
_OWN_ID = re.compile(r"<[0-9a-f]{32}@[^<>@\s]+>", re.IGNORECASE)
_QUOTED_TOKEN = re.compile(r"^[> \t]*X-Nurture-Send:[ \t]*([a-z2-7]{40}|[0-9a-f-]{32,36})[ \t]*$", re.IGNORECASE | re.MULTILINE)
_QUOTED_ID = re.compile(r"^[> \t]*Message-ID:[ \t]*(<[0-9a-f]{32}@[^<>@\s]+>)", re.IGNORECASE | re.MULTILINE)
_ARRIVED_AT = ("delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "x-delivered-to", "to", "cc", "resent-to", "apparently-to")

_BOUNCER = re.compile(
    r"mailer-?daemon|postmaster|mail delivery (sub)?system|mail(er)? administrator|mdaemon|microsoftexchange", re.IGNORECASE
)
_BOUNCED = re.compile(
    r"undeliver|delivery (status notification|failure|has failed|failed|report|problem|error)|returned mail|failure notice"
    r"|mail delivery failed|returning message to sender|non remis|non distribu|unzustellbar|nicht zugestellt|could ?n.t be delivered"
    r"|mail system error|delivery to the following|no entregado|mislukt|message not delivered|cannot be delivered",
    re.IGNORECASE,
)
_DELAYED = re.compile(r"delayed|delay \(|still being retried|warning: could not send|not yet been delivered|will be retried", re.IGNORECASE)
_AWAY = re.compile(
    r"^\s*(auto(matic)?[- ]?(reply|response|matisch|matische)|out of (the )?office|abwesenheit|réponse automatique|respuesta automática"
    r"|risposta automatica|afwezig|vacation|i am away|autoreply|automatisch antwoord)",
    re.IGNORECASE,
)
_CHALLENGE = re.compile(
    r"(confirm|verify) (that )?(you|your) .{0,40}(mail|message|address|human|person)|challenge|sender verification", re.IGNORECASE
)
_CODE = re.compile(r"(?<![\d.#])([45]\d\d)(?=[ -]|$)")
_RECIPIENT_FIELD = re.compile(r"^[^;]*;\s*")

_FEEDBACK = {
    "abuse": "complained",
    "fraud": "complained",
    "opt-out": "unsubscribed",
    "opt-out-list": "unsubscribed",
    "not-spam": "not_spam",
}


@dataclass(frozen=True, slots=True)
class Sorted:
    """What a mail is (`kind` is one of KINDS), what it reports, and the words worth showing: a person's answer, or the diagnostic."""

    kind: str
    reports: tuple[Report, ...] = ()
    text: str = ""


def sort(mail: Mail, at: datetime, key: str, *, recipient: str | None = None, sender: str | None = None) -> Sorted:
    """What `mail` is. `at` is when it came, `key` what makes it one mail; `recipient` and `sender` are of the envelope, where they were
    told (an empty sender is a null one). Never raises."""
    ours = _addresses(mail, recipient)
    if mail.feedback is not None:
        return _complaint(mail, at, key, ours)
    if mail.blocks:
        return _status(mail, at, key, ours)
    if "x-hmxmroriginalrecipient" in (mail.returned or {}) or "x-hmxmroriginalrecipient" in mail.headers:
        return _complaint(mail, at, key, ours)
    if "u" in ours:
        report = Report("unsubscribed", at, key, token=ours["u"], recipient=mail.sender or None)
        return Sorted("unsubscribe", (report,), mail.subject)
    if _is_bounce(mail, sender) and (found := _free_text(mail, at, key, ours)):
        return found
    if _is_automatic(mail, sender):
        named = _named(mail, ours, "rb")
        return Sorted("auto_reply", (Report("replied", at, key, sort="auto_reply", **named),) if named else (), mail.text[:DIAGNOSTIC_KEPT])
    if named := _named(mail, ours, "rb"):
        said = answer_of(mail.text)
        detail = {"from": mail.sender, "subject": mail.subject[:200]}
        return Sorted("reply", (Report("replied", at, key, text=said, recipient=mail.sender or None, detail=detail, **named),), said)
    return Sorted("unreadable" if mail.problems and not mail.headers else "other", (), mail.text[:DIAGNOSTIC_KEPT])


def answer_of(text: str) -> str:
    """What a person wrote, without what they quote and without their signature; all of it where nothing is left then."""
    text = text[:REPLY_KEPT].strip()
    lines = text.splitlines()
    if max(map(len, lines), default=0) > 2000 or len(lines) > 2000:
        return text  # no mail that people write, and hard work for the patterns
    try:
        found = EmailReplyParser(languages=list(LANGUAGES)).parse_reply(text)
    except Exception:
        found = None  # a library's fault must cost nobody an answer
    kept = (found or "").splitlines()
    while kept and (not kept[-1].strip() or kept[-1].startswith(">")):
        kept.pop()
    return "\n".join(kept).strip() or text


# Which message -------------------------------------------------------------------------------------------------------


def _addresses(mail: Mail, recipient: str | None) -> dict[str, str]:
    """Our addresses that the mail came to, by their first letter: the envelope's before those of the headers."""
    found: dict[str, str] = {}
    for value in (recipient or "", *lines_of(mail.headers, *_ARRIVED_AT)):
        for match in _OURS.finditer(f"{value}@" if "@" not in value else value):
            found.setdefault(match[1][0].lower(), match[1])
    return found


def _named(mail: Mail, ours: dict[str, str], letters: str) -> dict[str, str]:
    """How an answer names its message: the address that it came to, else what it answers to."""
    for letter in letters:
        if letter in ours:
            return {"token": ours[letter]}
    for value in lines_of(mail.headers, "in-reply-to", "references"):
        if found := _OWN_ID.findall(value):
            return {"message_header": found[-1]}
    return {}


def _returned(mail: Mail, ours: dict[str, str]) -> dict[str, str]:
    """How a report names its message (I-01): the address it came to; our headers in what it returns; the envelope id."""
    if "b" in ours:
        return {"token": ours["b"]}
    token, header = first(mail.returned, "x-nurture-send"), first(mail.returned, "message-id")
    if not token and (quoted := _QUOTED_TOKEN.search(mail.text)):
        token = quoted[1]
    if token:
        return {"token": token}
    envelope = next((value for block in mail.blocks for value in block.get("original-envelope-id", ())), "")
    if not _OWN_ID.fullmatch(header) and (quoted := _QUOTED_ID.search(mail.text)):
        header = quoted[1]
    if _OWN_ID.fullmatch(header):
        return {"message_header": header}
    return {"token": envelope} if _OWN_TOKEN.fullmatch(envelope) else {"message_header": header} if header else {}


# Reports with fields ---------------------------------------------------------------------------------------------------


def _status(mail: Mail, at: datetime, key: str, ours: dict[str, str]) -> Sorted:
    """RFC 3464: each block with an action is one recipient's (I-02). Only `failed` and `error` are final (I-03)."""
    named = _returned(mail, ours)
    blocks = [block for block in mail.blocks if {"action", "status", "final-recipient"} & block.keys()]
    reports = []
    for number, block in enumerate(blocks):
        text = first(block, "diagnostic-code")
        said = _diagnostic(text) or _diagnostic(mail.text)
        status, code = _refined(first(block, "status"), said), _code(text)
        about = {"code": code, "status": status, "recipient": _recipient(block), "text": said[:DIAGNOSTIC_KEPT]}
        remote = _RECIPIENT_FIELD.sub("", first(block, "remote-mta")) or _RECIPIENT_FIELD.sub("", first(block, "reporting-mta"))
        detail = {name: value[:200] for name, value in (("mta", remote), ("until", first(block, "will-retry-until"))) if value}
        kind = _of_action(first(block, "action"), status or "")
        reports.append(Report(kind, at, f"{key}:{number}", detail=detail, **about, **named))
    kinds = {report.kind for report in reports}
    kind = "bounce" if "bounced" in kinds else "delay" if "deferred" in kinds else "delivery" if kinds else "unreadable"
    return Sorted(kind, tuple(reports), reports[0].text if reports else mail.text[:DIAGNOSTIC_KEPT])


def _of_action(action: str, status: str) -> str:
    # It may carry a comment, and be written in any case.
    word = re.match(r"\s*([A-Za-z]*)", action)[1].lower()
    known = {
        "failed": "bounced",
        "error": "bounced",
        "delayed": "deferred",
        "delivered": "delivered",
        "relayed": "sent",
        "expanded": "sent",
    }
    if word in known:
        return known[word]
    return {"4": "deferred", "2": "delivered"}.get(status[:1], "bounced")


def _recipient(block: Fields) -> str | None:
    value = first(block, "original-recipient") or first(block, "final-recipient")
    return address_in(_RECIPIENT_FIELD.sub("", value)) or None


def _refined(status: str, said: str) -> str | None:
    """The enhanced code; where it only says that something went wrong (5.0.0), the one in the words of the remote server."""
    found, spoken = enhanced(status), enhanced(said)
    if found and not found.endswith(".0.0"):
        return found
    if spoken and not spoken.endswith(".0.0"):
        return spoken
    # 4.0.0 with nothing more says at least that it is not for good. 5.0.0 leaves the rest to code and text.
    return found if found and found.startswith(("2", "4")) and not _code(said) else None


def _code(text: str) -> int | None:
    found = _CODE.search(text)
    return int(found[1]) if found else None


def _diagnostic(text: str) -> str:
    """What the remote server said, out of a field or a text."""
    text = re.sub(r"^\s*(smtp|x-[\w-]+|lmtp|unix)\s*;\s*", "", text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text).strip()[:DIAGNOSTIC_KEPT]


def _complaint(mail: Mail, at: datetime, key: str, ours: dict[str, str]) -> Sorted:
    """ARF (RFC 5965), and Microsoft's way of returning the mail with a header of its own (I-04). The recipient is often blacked out."""
    feedback = mail.feedback or {}
    told = (first(feedback, "feedback-type") or ("abuse" if mail.feedback is None else "other")).strip().lower()
    kind = _FEEDBACK.get(told)
    if kind is None:
        return Sorted("feedback", (), told)
    sender = _OURS.search(f"{first(feedback, 'original-mail-from')}@")
    named = {"token": sender[1]} if sender else _returned(mail, ours)
    detail = {"feedback": told, "agent": first(feedback, "user-agent")[:200]}
    if kind == "unsubscribed":
        detail["scope"] = "all"
    recipient = address_in(first(feedback, "original-rcpt-to")) or None
    report = Report(kind, at, key, recipient=recipient, text=told, detail=detail, **named)
    return Sorted("feedback" if kind == "not_spam" else "complaint", (report,), told)


# Reports in words ------------------------------------------------------------------------------------------------------


def _is_bounce(mail: Mail, sender: str | None) -> bool:
    """Whether a mail without fields claims to be a report of the mail system."""
    if "x-failed-recipients" in mail.headers:
        return True
    said = bool(_BOUNCED.search(mail.subject) or _DELAYED.search(mail.subject))
    return bool(_BOUNCER.search(mail.first("from"))) or (said and (_is_null(mail, sender) or _is_report(mail)))


def _is_report(mail: Mail) -> bool:
    return "multipart/report" in mail.first("content-type").lower()


def _free_text(mail: Mail, at: datetime, key: str, ours: dict[str, str]) -> Sorted | None:
    """The words of mailers that speak no RFC 3464: the class comes from codes and words; a library's verdict is the last resort, as it
    only tells a failure for now from one for good. None where nothing says that anything failed."""
    # What is quoted of our own mail says nothing of what became of it.
    text = re.split(
        r"(?im)^-+ ?(this is a copy of|original message|below this line is a copy|returned message|the header|forwarded)", mail.text
    )[0]
    said, code, status = _worst_line(text), _code(text), enhanced(text)
    temporary, permanent = _library_says(mail.message)
    late = bool(_DELAYED.search(mail.subject)) and not _BOUNCED.search(mail.subject)
    if not (late or code or status or temporary or permanent or _BOUNCED.search(f"{mail.subject}\n{text[:4000]}")):
        return None
    soft = late or (not permanent and bool(temporary) and not (code or status))
    named = _returned(mail, ours)
    recipient = address_in(mail.first("x-failed-recipients")) or next(iter(sorted(permanent | temporary)), None)
    kind = "deferred" if late else "bounced"
    sort = "soft" if soft and not late else None
    report = Report(kind, at, f"{key}:0", code=code, status=status, sort=sort, recipient=recipient, text=said, **named)
    return Sorted("delay" if late else "bounce", (report,), said)


def _worst_line(text: str) -> str:
    """The line with a code and what follows it, as it is folded; else the beginning."""
    lines = text.splitlines()
    for number, line in enumerate(lines[:400]):
        if _CODE.search(line) or enhanced(line):
            return _diagnostic("\n".join(lines[number : number + 4]))
    return _diagnostic(text)


def _library_says(message: Message | None) -> tuple[set[str], set[str]]:
    if message is None:
        return set(), set()
    try:
        found = all_failures(message)
    except Exception:
        return set(), set()
    temporary, permanent = (
        {address_in(one.decode("ascii", "replace") if isinstance(one, bytes) else str(one)) for one in some} for some in found
    )
    return temporary - {""}, permanent - {""}


# Machines --------------------------------------------------------------------------------------------------------------


def _is_null(mail: Mail, sender: str | None) -> bool:
    """Whether the envelope sender was null: as told, else as the mailbox noted it."""
    if sender is not None:
        return sender.strip("<> ") == ""
    return any(value.strip().replace(" ", "") == "<>" for value in mail.headers.get("return-path", ()))


def _is_automatic(mail: Mail, sender: str | None) -> bool:
    """Whether a machine answered (I-05, RFC 3834): nothing that a person meant, and nothing to act on."""
    submitted = re.split(r"[;(\s]", mail.first("auto-submitted").strip().lower())[0]
    precedence = mail.first("precedence").strip().lower()
    return (
        submitted not in ("", "no")
        or precedence in ("bulk", "auto_reply", "auto-reply", "junk", "list")
        or bool({"x-autoreply", "x-autorespond", "x-auto-reply", "x-autogenerated", "list-id"} & mail.headers.keys())
        or _is_null(mail, sender)
        or _is_report(mail)
        or bool(_AWAY.search(mail.subject))
        or bool(_CHALLENGE.search(mail.subject))
        or bool(_BOUNCER.search(mail.first("from")))
    )
