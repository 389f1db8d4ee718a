"""Mails that come back, written here after the formats of common mail systems, and what each of them means (email-standards 3.1, 3.2).

`corpus(address, token, header)` gives them for one message: `address` is the envelope sender they are sent to, `token` and `header` are
what stands in the mail that they return. Each has the kind that it is, the class of 3.2 (None where it is no failure) and how it names the
message: by `address`, `returned` headers, `quoted` headers, or the `envelope` id.
"""

from __future__ import annotations

from dataclasses import dataclass

GONE = "nobody@example.org"


@dataclass(frozen=True)
class Sample:
    name: str
    raw: bytes
    kind: str
    sort: str | None = None
    status: str | None = None
    by: str = "address"


def mail(headers: dict[str, str], body: str) -> bytes:
    return ("".join(f"{name}: {value}\n" for name, value in headers.items()) + "\n" + body).replace("\n", "\r\n").encode("utf-8")


def multipart(headers: dict[str, str], kind: str, parts: list[tuple[str, str]]) -> bytes:
    edge = "edge-of-parts"
    body = "".join(f"--{edge}\nContent-Type: {of}\n\n{text}\n" for of, text in parts) + f"--{edge}--\n"
    return mail({**headers, "MIME-Version": "1.0", "Content-Type": f'{kind}; boundary="{edge}"'}, body)


def dsn(
    address: str,
    block: str,
    *,
    text: str = "This is the mail system. Your message could not be delivered.",
    returned: str = "",
    sender: str = "MAILER-DAEMON@mx.example.org (Mail Delivery System)",
    subject: str = "Undelivered Mail Returned to Sender",
    about: str = "Reporting-MTA: dns; mx.example.org\nArrival-Date: Mon, 2 Mar 2026 09:00:00 +0000",
    returned_type: str = "text/rfc822-headers",
    status_type: str = "message/delivery-status",
) -> bytes:
    parts = [("text/plain; charset=us-ascii", text), (status_type, f"{about}\n\n{block}\n")]
    parts += [(returned_type, returned)] if returned else []
    headers = {"Return-Path": "<>", "From": sender, "To": address, "Subject": subject, "Auto-Submitted": "auto-replied"}
    return multipart(headers, "multipart/report; report-type=delivery-status", parts)


def recipient(action: str, status: str, diagnostic: str = "", more: str = "", to: str = GONE) -> str:
    lines = [f"Final-Recipient: rfc822; {to}", f"Action: {action}", f"Status: {status}"]
    lines += [f"Diagnostic-Code: {diagnostic}"] if diagnostic else []
    return "\n".join(lines + ([more] if more else []))


def words(address: str, sender: str, subject: str, body: str, **headers: str) -> bytes:
    return mail({"Return-Path": "<>", "From": sender, "To": address, "Subject": subject, **headers}, body)


def corpus(address: str, token: str, header: str) -> list[Sample]:
    """All of them. `header` has its brackets."""
    ours = f"From: Acorn <success@acorn.test>\nTo: {GONE}\nSubject: Welcome\nMessage-ID: {header}\nX-Nurture-Send: {token}\n"
    only_id = f"From: Acorn <success@acorn.test>\nTo: {GONE}\nMessage-ID: {header}\n"
    elsewhere = "bounces@example.com"
    found: list[Sample] = []

    def add(name: str, raw: bytes, kind: str, sort: str | None = None, status: str | None = None, by: str = "address") -> None:
        found.append(Sample(name, raw, kind, sort, status, by))

    # RFC 3464, as Postfix, sendmail, Exim, Exchange and Gmail write it ------------------------------------------------
    said = "smtp; 550 5.1.1 <nobody@example.org>: Recipient address rejected: User unknown"
    add("postfix, no such user", dsn(address, recipient("failed", "5.1.1", said), returned=ours), "bounce", "hard", "5.1.1")
    add(
        "postfix, known by what it returns",
        dsn(elsewhere, recipient("failed", "5.1.1", said), returned=ours),
        "bounce",
        "hard",
        "5.1.1",
        "returned",
    )
    add(
        "postfix, the whole mail comes back",
        dsn(elsewhere, recipient("failed", "5.1.1", said), returned=only_id + "\nHello", returned_type="message/rfc822"),
        "bounce",
        "hard",
        "5.1.1",
        "returned",
    )
    add(
        "postfix, known by the envelope id",
        dsn(elsewhere, recipient("failed", "5.1.1", said), about=f"Original-Envelope-Id: {token}\nReporting-MTA: dns; mx.example.org"),
        "bounce",
        "hard",
        "5.1.1",
        "envelope",
    )
    add(
        "postfix, no such host",
        dsn(
            address,
            recipient("failed", "5.4.4", "X-Postfix; Host or domain name not found. Name service error for name=gone.example type=A"),
        ),
        "bounce",
        "host",
        "5.4.4",
    )
    add("postfix, mailbox full", dsn(address, recipient("failed", "5.2.2", "smtp; 552 5.2.2 Over quota")), "bounce", "full", "5.2.2")
    add(
        "postfix, given up after five days",
        dsn(address, recipient("failed", "4.4.1", "X-Postfix; connect to mx.slow.example[192.0.2.7]:25: Connection timed out")),
        "bounce",
        "soft",
        "4.4.1",
    )
    add(
        "postfix, delayed",
        dsn(
            address,
            recipient("delayed", "4.4.1", "X-Postfix; Connection timed out", "Will-Retry-Until: Sat, 7 Mar 2026 09:00:00 +0000"),
            subject="Delayed Mail (still being retried)",
        ),
        "delay",
        "soft",
        "4.4.1",
    )
    add(
        "postfix, delivered as asked",
        dsn(address, recipient("delivered", "2.0.0", "smtp; 250 2.0.0 Ok: queued")),
        "delivery",
        None,
        "2.0.0",
    )
    add("relayed to a system that reports nothing", dsn(address, recipient("relayed", "2.1.9")), "delivery")
    add("expanded into a list", dsn(address, recipient("expanded (to multi-recipient alias)", "2.1.5")), "delivery")
    add(
        "sendmail, an action with a comment and in capitals",
        dsn(
            address,
            recipient("FAILED (bad destination mailbox address)", "5.1.1 (bad destination mailbox)", "SMTP; 550 5.1.1 User unknown"),
            subject="Returned mail: see transcript for details",
            sender="Mail Delivery Subsystem <MAILER-DAEMON@mx.example.org>",
        ),
        "bounce",
        "hard",
        "5.1.1",
    )
    add("opensmtpd, the action is an error", dsn(address, recipient("error", "5.0.0", "smtp; 550 Invalid recipient")), "bounce", "hard")
    add(
        "exim, fields without an enhanced code",
        dsn(
            address,
            recipient("failed", "5.0.0", "smtp; 550 Unrouteable address"),
            sender="Mail Delivery System <Mailer-Daemon@exim.example>",
        ),
        "bounce",
        "host",
    )
    add(
        "exim, the field says less than the server said",
        dsn(address, recipient("failed", "5.0.0", "smtp; 550-5.7.26 This mail has been blocked because\n the sender is unauthenticated.")),
        "bounce",
        "block",
        "5.7.26",
    )
    add(
        "exchange, recipient not found",
        dsn(
            address,
            recipient("failed", "5.1.10", "smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"),
            sender="Microsoft Outlook <MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@tenant.example>",
            subject="Undeliverable: Welcome",
            returned=ours,
            returned_type="message/rfc822",
        ),
        "bounce",
        "hard",
        "5.1.10",
    )
    add(
        "exchange, no access for strangers",
        dsn(
            address, recipient("failed", "5.4.1", "smtp;550 5.4.1 Recipient address rejected: Access denied."), subject="Undeliverable: Hi"
        ),
        "bounce",
        "host",
        "5.4.1",
    )
    add(
        "exchange, restricted mailbox",
        dsn(
            address, recipient("failed", "5.7.133", "smtp;550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup"), subject="Undeliverable"
        ),
        "bounce",
        "block",
        "5.7.133",
    )
    add(
        "gmail, no such account",
        dsn(
            address,
            recipient(
                "failed",
                "5.1.1",
                "smtp; 550-5.1.1 The email account that you tried to reach does not exist. Please try\n 550-5.1.1 double-checking it.",
            ),
            sender="Mail Delivery Subsystem <mailer-daemon@googlemail.com>",
            subject="Delivery Status Notification (Failure)",
        ),
        "bounce",
        "hard",
        "5.1.1",
    )
    add(
        "gmail, account over its space",
        dsn(address, recipient("failed", "4.2.2", "smtp; 452-4.2.2 The recipient's inbox is out of storage space.")),
        "bounce",
        "full",
        "4.2.2",
    )
    add(
        "gmail, disabled",
        dsn(address, recipient("failed", "5.2.1", "smtp; 550 5.2.1 The email account that you tried to reach is disabled.")),
        "bounce",
        "hard",
        "5.2.1",
    )
    add(
        "gmail, held back for its rate",
        dsn(address, recipient("failed", "4.7.28", "smtp; 421 4.7.28 unusual rate of mail")),
        "bounce",
        "block",
        "4.7.28",
    )
    add(
        "yahoo, no such user in its own words",
        dsn(address, recipient("failed", "5.0.0", "smtp; 553 delivery error: dd This user doesn't have an account here (nobody)")),
        "bounce",
        "hard",
    )
    add(
        "a null mx", dsn(address, recipient("failed", "5.1.10", "smtp; 556 5.1.10 Domain does not accept mail")), "bounce", "hard", "5.1.10"
    )
    add(
        "content refused",
        dsn(address, recipient("failed", "5.6.0", "smtp; 554 5.6.0 Message contains bad content")),
        "bounce",
        "block",
        "5.6.0",
    )
    add("message too big", dsn(address, recipient("failed", "5.3.4", "smtp; 552 5.3.4 Message too big")), "bounce", "block", "5.3.4")
    add(
        "our sender address refused",
        dsn(address, recipient("failed", "5.1.8", "smtp; 550 5.1.8 Bad sender")),
        "bounce",
        "configuration",
        "5.1.8",
    )
    add(
        "our sender has a null mx",
        dsn(address, recipient("failed", "5.7.27", "smtp; 550 5.7.27 Sender null MX")),
        "bounce",
        "configuration",
        "5.7.27",
    )
    add("a protocol error", dsn(address, recipient("failed", "5.5.2", "smtp; 500 5.5.2 Syntax error")), "bounce", "configuration", "5.5.2")
    add(
        "expired, in the permanent form",
        dsn(address, recipient("failed", "5.4.7", "smtp; 554 5.4.7 Delivery time expired")),
        "bounce",
        "soft",
        "5.4.7",
    )
    add("a blocklist", dsn(address, recipient("failed", "5.0.0", "smtp; 554 192.0.2.1 listed at zen.spamhaus.org")), "bounce", "block")
    add(
        "an international report",
        dsn(address, recipient("failed", "5.1.1", "smtp; 550 5.1.1 Unbekannter Empfänger"), status_type="message/global-delivery-status"),
        "bounce",
        "hard",
        "5.1.1",
    )
    add("a block without an action", dsn(address, "Final-Recipient: rfc822; nobody@example.org\nStatus: 5.1.1"), "bounce", "hard", "5.1.1")
    add(
        "all fields in one block",
        dsn(address, "", about="Reporting-MTA: dns; mx.example.org\n" + recipient("failed", "5.1.1", said)),
        "bounce",
        "hard",
        "5.1.1",
    )

    add("a loop", dsn(address, recipient("failed", "5.4.6", "smtp; 554 5.4.6 Too many hops")), "bounce", "soft", "5.4.6")
    add("another owner", dsn(address, recipient("failed", "5.7.17", "smtp; 550 5.7.17 Owner changed")), "bounce", "hard", "5.7.17")

    # In words ----------------------------------------------------------------------------------------------------------
    add(
        "qmail, no mailbox",
        words(
            address,
            "MAILER-DAEMON@qmail.example",
            "failure notice",
            "Hi. This is the qmail-send program at qmail.example.\nI'm afraid I wasn't able to deliver your message.\n\n"
            "<nobody@example.org>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n--- Below this line is a copy of the message.\n\n"
            + ours,
        ),
        "bounce",
        "hard",
        "5.1.1",
    )
    add(
        "qmail, known by its copy of the mail",
        words(
            elsewhere,
            "MAILER-DAEMON@qmail.example",
            "failure notice",
            "<nobody@example.org>:\n192.0.2.9 failed after I sent the message.\nRemote host said: 554 Blocked as spam\n\n"
            "--- Below this line is a copy of the message.\n\n" + ours,
        ),
        "bounce",
        "block",
        None,
        "quoted",
    )
    add(
        "exim, in words",
        words(
            address,
            "Mail Delivery System <Mailer-Daemon@exim.example>",
            "Mail delivery failed: returning message to sender",
            "This message was created automatically by mail delivery software.\n\n  nobody@example.org\n"
            "    host mx.example.org [192.0.2.3]\n    SMTP error from remote mail server after RCPT TO:<nobody@example.org>:\n"
            "    550 No such user here\n\n------ This is a copy of the message, including all the headers. ------\n" + ours,
            **{"X-Failed-Recipients": GONE, "Auto-Submitted": "auto-replied"},
        ),
        "bounce",
        "hard",
    )
    add(
        "exim, a warning",
        words(
            address,
            "Mail Delivery System <Mailer-Daemon@exim.example>",
            "Warning: message 1abc-0001 delayed 24 hours",
            "A message that you sent has not yet been delivered after more than 24 hours.\n\n"
            "  nobody@example.org\n    Delay reason: timeout\n",
        ),
        "delay",
        "soft",
    )
    add(
        "old sendmail",
        words(
            address,
            "MAILER-DAEMON (Mail Delivery Subsystem)",
            "Returned mail: User unknown",
            "   ----- The following addresses had permanent fatal errors -----\n<nobody@example.org>\n\n"
            "   ----- Transcript of session follows -----\n"
            "... while talking to mx.example.org.:\n"
            ">>> RCPT To:<nobody@example.org>\n<<< 550 <nobody@example.org>... User unknown\n",
        ),
        "bounce",
        "hard",
    )
    add(
        "lotus, in its own words",
        words(
            address,
            "Postmaster@notes.example",
            "DELIVERY FAILURE: User nobody (nobody@example.org) not listed in Domino Directory",
            "Your message\n\n  Subject: Welcome\n\nwas not delivered to:\n\n  nobody@example.org\n\nbecause:\n\n"
            "  User nobody (nobody@example.org) not listed in Domino Directory\n",
        ),
        "bounce",
        "hard",
    )
    add(
        "groupwise, mailbox full",
        words(
            address,
            "Postmaster@groupwise.example",
            "Message status - undeliverable",
            "The message that you sent was undeliverable:\nMailbox is full\n",
        ),
        "bounce",
        "full",
    )
    add(
        "old exchange, in german",
        words(
            address,
            "System Administrator <postmaster@exchange.example>",
            "Unzustellbar: Welcome",
            "Ihre Nachricht hat einige oder alle Empfänger nicht erreicht.\n\n  nobody@example.org\n"
            "  Das E-Mail-Konto ist nicht vorhanden. <mx.exchange.example #5.1.1>\n",
        ),
        "bounce",
        "hard",
        "5.1.1",
    )
    add(
        "a mailer that gives no reason",
        words(address, "MAILER-DAEMON@old.example", "Undeliverable mail", "I was unable to deliver your message to nobody@example.org.\n"),
        "bounce",
        "soft",
    )

    # Complaints --------------------------------------------------------------------------------------------------------
    for told, kind in (
        ("abuse", "complaint"),
        ("fraud", "complaint"),
        ("opt-out", "complaint"),
        ("not-spam", "feedback"),
        ("virus", "feedback"),
        ("other", "feedback"),
    ):
        add(f"arf, {told}", arf("fbl@example.com", told, ours, mail_from=f"Original-Mail-From: <{address}>"), kind)
    add("arf, known by what it returns", arf("fbl@example.com", "abuse", ours), "complaint", by="returned")
    add(
        "microsoft, a mail with a header of its own",
        multipart(
            {"From": "staff@hotmail.example", "To": "fbl@example.com", "Subject": "complaint about message from 192.0.2.1"},
            "multipart/mixed",
            [("message/rfc822", f"X-HmXmrOriginalRecipient: {GONE}\n{ours}\nHello")],
        ),
        "complaint",
        by="returned",
    )

    # Machines ----------------------------------------------------------------------------------------------------------
    away = {"From": "Ada <ada@example.org>", "To": address, "In-Reply-To": header}
    add(
        "away, as the standard says",
        mail({**away, "Subject": "I am on holiday", "Auto-Submitted": "auto-replied"}, "Back on Monday."),
        "auto_reply",
    )
    add("away, by its precedence", mail({**away, "Subject": "Away", "Precedence": "bulk"}, "Back on Monday."), "auto_reply")
    add("away, by its own header", mail({**away, "Subject": "Away", "X-Autoreply": "yes"}, "Back on Monday."), "auto_reply")
    add("away, by its null sender", mail({**away, "Subject": "Away", "Return-Path": "<>"}, "Back on Monday."), "auto_reply")
    add("away, by its subject", mail({**away, "Subject": "Automatische Antwort: Welcome"}, "Ich bin nicht da."), "auto_reply")
    add(
        "away, in encoded words",
        mail({**away, "Subject": "=?utf-8?q?R=C3=A9ponse_automatique_=3A_Welcome?="}, "Je suis absente."),
        "auto_reply",
    )
    add(
        "a challenge",
        mail({**away, "Subject": "Please confirm that you are a human"}, "Click here so that I read your mail."),
        "auto_reply",
    )
    add(
        "a receipt of reading",
        multipart(
            {**away, "Subject": "Read: Welcome"},
            "multipart/report; report-type=disposition-notification",
            [
                ("text/plain", "It was read."),
                ("message/disposition-notification", f"Final-Recipient: rfc822; {GONE}\nDisposition: manual-action; displayed"),
            ],
        ),
        "auto_reply",
    )
    return found


def arf(to: str, told: str, returned: str, mail_from: str = "") -> bytes:
    fields = f"Feedback-Type: {told}\nUser-Agent: ExampleFBL/1.0\nVersion: 1\n{mail_from}".strip()
    parts = [("text/plain", "This is an abuse report."), ("message/feedback-report", fields), ("message/rfc822", returned + "\nHello")]
    return multipart(
        {"From": "fbl@provider.example", "To": to, "Subject": "FW: Welcome"}, "multipart/report; report-type=feedback-report", parts
    )


# What somebody sends who means no good ------------------------------------------------------------------------------------


def hostile(address: str) -> dict[str, bytes]:
    """Mails that no mail program makes; none may raise, stop a worker, or take long."""
    edge = "\r\n--b\r\nContent-Type: text/plain\r\n\r\nx"
    nested = b"To: x@y\r\n" + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(3000))
    inner = b"To: x@y\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * 3000
    report = b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
    report += b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    to = f"To: {address}\r\n".encode()
    return {
        "nothing": b"",
        "one byte": b"\x00",
        "no headers": b"just words, no headers at all",
        "headers without an end": b"To: x@y\r\nSubject: " + b"x" * 100,
        "10 MB of one line": to + b"\r\n" + b"x" * (10 * 1024 * 1024 - 100),
        "10 MB of short lines": to + b"\r\n" + b"x\r\n" * (3 * 1024 * 1024),
        "200 parts": to + b"Content-Type: multipart/mixed; boundary=b\r\n" + (edge * 200).encode() + b"\r\n--b--",
        "55 parts, each of them a mail": to
        + b"Content-Type: multipart/digest; boundary=b\r\n\r\n"
        + b"--b\r\nContent-Type: message/rfc822\r\n\r\nA: b\r\n\r\n" * 55,
        "3000 levels": nested,
        "mails in mails": inner,
        "a header of 200 KB": b"Subject: " + b"y" * 200_000 + b"\r\n" + to + b"\r\nHello",
        "100,000 headers": b"X: 1\r\n" * 100_000 + to + b"\r\nHello",
        "a folded header": b"Subject: " + b"\r\n z" * 20_000 + b"\r\n" + to + b"\r\nHello",
        "NULs": b"Sub\x00ject: a\x00b\r\n" + to + b"\r\nHel\x00lo \x00",
        "bytes that are no text": bytes(range(256)) * 400,
        "a charset that is none": to + b'Content-Type: text/plain; charset="x-no-such"\r\n\r\nH\xe9llo',
        "a charset that is not what it says": to + b"Content-Type: text/plain; charset=utf-8\r\n\r\nH\xe9llo \xff\xfe",
        "a charset with a NUL": to + b'Content-Type: text/plain; charset="\x00"\r\n\r\nHello',
        "utf-7 and punycode": to + b"Content-Type: text/plain; charset=punycode\r\n\r\n\xff\xff-a-",
        "broken encoded words": b"Subject: =?x-none?b?####?= =?utf-8?q?=ZZ?= =?utf-8?b?/w==?=\r\nFrom: =?utf-8?b?"
        + b"A" * 9000
        + b"?=\r\n"
        + to
        + b"\r\n",
        "broken base64": to + b"Content-Transfer-Encoding: base64\r\n\r\n!!!!" + b"A" * 5001,
        "broken uuencode": to + b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 x\r\nM\xff\xff\xff\r\n",
        "a From that nests": b"From: " + b"(" * 5000 + b"<" * 5000 + b"a@b\r\n" + to + b"\r\nHello",
        "a report without fields": to + report + b"\r\n--b--\r\n",
        "a report of nonsense": to
        + report
        + b"Action: \xff\xfe\r\nStatus: 9.9.9.9.9\r\nFinal-Recipient: "
        + b";" * 5000
        + b"\r\n\r\n--b--\r\n",
        "a report of 10,000 recipients": to + report + b"Action: failed\r\nStatus: 5.1.1\r\n\r\n" * 10_000 + b"--b--\r\n",
        "a status with digits beyond": to
        + report
        + b"Action: failed\r\nStatus: 5.999999999999.1\r\nDiagnostic-Code: smtp; 599999999999 no\r\n\r\n--b--\r\n",
        "quotes without end": to + b"\r\n" + b"> " * 20_000 + b"\r\n" + b"On Monday wrote:\r\n" * 3000,
        "a signature without end": to + b"\r\nHi\r\n" + b"--\r\n" * 15_000,
        "spaces for patterns": to + b"Subject: " + b" " * 30_000 + b"x\r\n\r\n" + b" " * 60_000 + b"\r\nOn " + b" " * 3000,
        "html that nests": to + b"Content-Type: text/html\r\n\r\n" + b"<div>" * 15_000 + b"deep",
        "html with a script": to + b"Content-Type: text/html\r\n\r\n<script>alert(1)</script><p onclick=x>Hello</p>",
        "only line ends": b"\r\n" * 50_000,
        "only carriage returns": to.replace(b"\n", b"") + b"\r" * 50_000,
    }
