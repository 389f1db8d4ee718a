"""Mail providers as they call us: each signs as the real one does, with keys made for the test.

    provider = PROVIDERS["mailgun"]()
    hook = provider.add(conn, settings, now)
    body, headers = provider.call(provider.bounce(token))

`delivery`, `bounce`, `complaint`, `opened`, `clicked` and `unknown` give an event as the provider words it, about the message whose send
token is given.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from app.flow.hooks import add_hook
from tests.hooks import Hooks

ADDRESS = "ada@example.org"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:mail"
CERTIFICATE = "/SimpleNotificationService-0123456789abcdef.pem"
REFUSAL = "smtp; 550 5.1.1 user unknown"


class Provider:
    name = ""
    secret: str | None = None

    def add(self, conn, settings, now, **options):
        self.hook = add_hook(conn, settings, self.name, now, secret=self.secret, **options)
        if self.name == "postmark":
            self.secret = self.hook.secrets[0].secret
        return self.hook

    @property
    def path(self) -> str:
        return f"/hooks/{self.name}/{self.hook.id}"

    def call(self, event: Any) -> tuple[bytes, dict[str, str]]:
        raise NotImplementedError


class Ses(Provider):
    """Through SNS, with a certificate that a server of the test serves."""

    name = "ses"
    version = "2"
    url = "https://sns.eu-west-1.amazonaws.com"

    def add(self, conn, settings, now, **options):
        return super().add(conn, settings, now, **{"topics": [TOPIC], **options})

    def call(self, event, kind="Notification", topic=TOPIC, **fields):
        message = {
            "Type": kind,
            "MessageId": str(uuid4()),
            "TopicArn": topic,
            "Message": event if isinstance(event, str) else json.dumps(event),
            "Timestamp": "2026-03-02T09:00:00.000Z",
            "SignatureVersion": self.version,
            "SigningCertURL": self.url + CERTIFICATE,
            **fields,
        }
        message.setdefault("Signature", self.sign(message))
        return json.dumps(message).encode(), {"Content-Type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": kind}

    def sign(self, message) -> str:
        names = ["Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
        signed = "".join(f"{name}\n{message[name]}\n" for name in names if name in message)
        algorithm = hashes.SHA1() if self.version == "1" else hashes.SHA256()
        return base64.b64encode(sns_key()[0].sign(signed.encode(), padding.PKCS1v15(), algorithm)).decode()

    def confirmation(self, url, **fields):
        return self.call("You have chosen to subscribe", "SubscriptionConfirmation", Token="t0k", SubscribeURL=url, **fields)

    def event(self, name, token, part, **facts):
        mail = {
            "messageId": "0102018f-1",
            "timestamp": "2026-03-02T08:00:00.000Z",
            "destination": [ADDRESS],
            "headers": [{"name": "X-Nurture-Send", "value": token}] if token else [],
            "commonHeaders": {"messageId": facts.pop("header", None)},
            "tags": {"ses:source-ip": ["192.0.2.1"]},
        }
        return {"eventType": name, "mail": mail, part: {"timestamp": iso(), **facts}}

    def delivery(self, token, **facts):
        return self.event("Delivery", token, "delivery", recipients=[ADDRESS], smtpResponse="250 2.0.0 OK", **facts)

    def bounce(self, token, **facts):
        people = [{"emailAddress": ADDRESS, "action": "failed", "status": "5.1.1", "diagnosticCode": REFUSAL}]
        types = {"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": people}
        return self.event("Bounce", token, "bounce", **{**types, **facts})

    def complaint(self, token):
        people = [{"emailAddress": ADDRESS}]
        return self.event("Complaint", token, "complaint", complainedRecipients=people, complaintFeedbackType="abuse")

    def opened(self, token, agent):
        return self.event("Open", token, "open", userAgent=agent, ipAddress="192.0.2.7")

    def clicked(self, token, url, agent):
        return self.event("Click", token, "click", userAgent=agent, link=url, ipAddress="192.0.2.7")

    def unknown(self, token):
        return self.event("Levitation", token, "levitation", height=3)


class SendGrid(Provider):
    name = "sendgrid"

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        der = self.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.secret = base64.b64encode(der).decode()

    def call(self, event):
        return self.signed(json.dumps(event if isinstance(event, list) else [event]).encode())

    def signed(self, body: bytes, timestamp="1600112502"):
        signature = base64.b64encode(self.key.sign(timestamp.encode() + body, ec.ECDSA(hashes.SHA256()))).decode()
        headers = {"X-Twilio-Email-Event-Webhook-Signature": signature, "X-Twilio-Email-Event-Webhook-Timestamp": timestamp}
        return body, {**headers, "Content-Type": "application/json"}

    def event(self, name, token, **facts):
        found = {"event": name, "email": ADDRESS, "timestamp": int(time.time()), "sg_event_id": uuid4().hex, "sg_message_id": "filter1.1"}
        return {**found, "smtp-id": facts.pop("header", "<x@ismtpd>"), **({"nurture_send": token} if token else {}), **facts}

    def delivery(self, token, **facts):
        return self.event("delivered", token, response="250 2.0.0 OK", **facts)

    def bounce(self, token, **facts):
        return self.event("bounce", token, **{"type": "bounce", "status": "5.1.1", "reason": REFUSAL[6:], **facts})

    def complaint(self, token):
        return self.event("spamreport", token)

    def opened(self, token, agent, machine=False):
        return self.event("open", token, useragent=agent, sg_machine_open=machine, ip="192.0.2.7")

    def clicked(self, token, url, agent):
        return self.event("click", token, useragent=agent, url=url, ip="192.0.2.7")

    def unknown(self, token):
        return self.event("levitated", token, height=3)


class Postmark(Provider):
    name = "postmark"

    def call(self, event, user="nurture", password=None):
        given = base64.b64encode(f"{user}:{password or self.secret}".encode()).decode()
        return json.dumps(event).encode(), {"Authorization": f"Basic {given}", "Content-Type": "application/json"}

    def event(self, record, token, **facts):
        facts.pop("header", None)
        return {"RecordType": record, "MessageID": "883953f4-1", "Metadata": {"nurture_send": token} if token else {}, **facts}

    def delivery(self, token, **facts):
        return self.event("Delivery", token, **{"Recipient": ADDRESS, "DeliveredAt": iso(), "Details": "smtp;250 2.0.0 OK", **facts})

    def bounce(self, token, **facts):
        found = {"ID": 4323372036854775807, "Type": "HardBounce", "Email": ADDRESS, "BouncedAt": iso(), "Details": REFUSAL}
        return self.event("Bounce", token, **{**found, **facts})

    def complaint(self, token):
        return self.event("SpamComplaint", token, ID=42, Type="SpamComplaint", Email=ADDRESS, BouncedAt=iso(), Details="")

    def opened(self, token, agent):
        return self.event("Open", token, Recipient=ADDRESS, ReceivedAt=iso(), UserAgent=agent, FirstOpen=True)

    def clicked(self, token, url, agent):
        return self.event("Click", token, Recipient=ADDRESS, ReceivedAt=iso(), UserAgent=agent, OriginalLink=url)

    def unknown(self, token):
        return self.event("Levitation", token, Recipient=ADDRESS, Height=3)


class Mailgun(Provider):
    name = "mailgun"
    secret = "key-0123456789abcdef0123456789abcdef"

    def call(self, event, age=timedelta(0), token=None):
        timestamp = str(int(time.time() - age.total_seconds()))
        token = token or uuid4().hex
        signature = hmac.new(self.secret.encode(), (timestamp + token).encode(), hashlib.sha256).hexdigest()
        body = {"signature": {"timestamp": timestamp, "token": token, "signature": signature}, "event-data": event}
        return json.dumps(body).encode(), {"Content-Type": "application/json"}

    def event(self, name, token, **facts):
        found = {"event": name, "id": uuid4().hex[:22], "timestamp": time.time(), "recipient": ADDRESS}
        variables = {"nurture_send": token} if token else []
        headers = {"message-id": facts.pop("header", "<x@mg>").strip("<>")}
        return {**found, "user-variables": variables, "message": {"headers": headers}, **facts}

    def delivery(self, token, **facts):
        return self.event("delivered", token, **{"delivery-status": {"code": 250, "message": "OK"}, **facts})

    def bounce(self, token, **facts):
        status = {"code": 550, "message": "5.1.1 user unknown", "enhanced-code": "5.1.1"}
        return self.event("failed", token, **{"severity": "permanent", "reason": "bounce", "delivery-status": status, **facts})

    def complaint(self, token):
        return self.event("complained", token)

    def opened(self, token, agent, machine=False):
        client = {"user-agent": agent, **({"bot": "apple"} if machine else {})}
        return self.event("opened", token, **{"client-info": client, "ip": "192.0.2.7"})

    def clicked(self, token, url, agent):
        return self.event("clicked", token, url=url, **{"client-info": {"user-agent": agent}})

    def unknown(self, token):
        return self.event("levitated", token, height=3)


PROVIDERS = {one.name: one for one in (Ses, SendGrid, Postmark, Mailgun)}


class Sns(Hooks):
    """What plays Amazon SNS: serves the certificate, and takes confirmations. `serves` is path → answer; `asked` counts."""

    def __init__(self, tls):
        super().__init__(tls=tls)
        self.serves: dict[str, tuple] = {CERTIFICATE: (200, {}, sns_key()[1])}

    def take(self, path, headers, body):
        super().take(path, headers, body)
        return self.serves.get(path.partition("?")[0], (404, {}, b"not here"))

    @property
    def asked(self) -> list[str]:
        return [path for path, _, _ in self.requests]


@cache
def sns_key() -> tuple[rsa.RSAPrivateKey, bytes]:
    """The key that SNS signs with here, and its certificate."""
    key = rsa.generate_private_key(65537, 2048)
    return key, certificate_of(key)


def certificate_of(key, days=(-1, 1)) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sns.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def iso() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
