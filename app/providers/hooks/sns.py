"""Amazon SNS: whether a message is what it says, and whose it is (W-10).

A good signature is not enough: any customer of Amazon can point a topic of theirs at us, so the topic must be one that the operator
named. What a message asks us to fetch (the certificate, the confirmation) is fetched from Amazon's SNS only, without redirects.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256

from app.errors import CallError, InputError, Refused
from app.providers.hooks.call import text
from app.providers.outgoing import Caller

NOTIFICATION, CONFIRMATION, FAREWELL = "Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"
VERSIONS = (1, 2)

_NOTIFIED = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_CONFIRMED = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED = {NOTIFICATION: _NOTIFIED, CONFIRMATION: _CONFIRMED, FAREWELL: _CONFIRMED}
_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]{2,40}:\d{12}:[A-Za-z0-9_.-]{1,256}")
_HOST = re.compile(r"sns\.[a-z0-9-]+\.amazonaws\.com(\.cn)?")
_CERTIFICATE = re.compile(r"/SimpleNotificationService-[A-Za-z0-9]{1,100}\.pem")
_LARGEST = 64 * 1024
_SMALLEST_KEY = 2048
_KEPT = 24 * 3600.0
_MOST_KEPT = 50


class Certificates:
    """The keys that SNS signs with, fetched once a day. Threads may share one."""

    def __init__(self, caller: Caller):
        self.caller = caller
        self._kept: dict[str, tuple[float, x509.Certificate]] = {}

    def key(self, url: str, stand_in: str | None, at: datetime) -> rsa.RSAPublicKey:
        """The key of the certificate at `url`. Raises Refused for a place that is not SNS's or a certificate that cannot be one of it, and
        CallError where it cannot be fetched for now."""
        check_place(url, stand_in, _CERTIFICATE)
        found = self._kept.get(url)
        if found is None or time.monotonic() - found[0] > _KEPT:
            certificate = self._fetched(url)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            found = self._kept[url] = (time.monotonic(), certificate)
        certificate = found[1]
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise Refused(401, "the certificate is not valid at this time")
        key = certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _SMALLEST_KEY:
            raise Refused(401, f"the certificate has no RSA key of at least {_SMALLEST_KEY} bits")
        return key

    def _fetched(self, url: str) -> x509.Certificate:
        answer = self.caller.get(url, _LARGEST + 1)
        if answer.status >= 500 or answer.status == 429:
            raise CallError("unsent", f"the certificate could not be fetched: HTTP {answer.status}")
        if answer.status != 200:
            raise Refused(401, f"there is no certificate at the named place: HTTP {answer.status}")
        if len(answer.body) > _LARGEST:
            raise Refused(401, f"the certificate is larger than {_LARGEST // 1024} KB")
        try:
            return x509.load_pem_x509_certificate(answer.body)
        except ValueError as error:
            raise Refused(401, "what stands in for a certificate is none") from error


def check_topic(topic: str) -> str:
    """A topic's ARN. Raises InputError."""
    if not _TOPIC.fullmatch(topic):
        raise InputError("must be the ARN of a topic, such as arn:aws:sns:eu-west-1:123456789012:mail", "topic")
    return topic


def check_place(url: str, stand_in: str | None, path: re.Pattern[str] | None = None) -> None:
    """Raises Refused unless `url` is an https address of Amazon SNS, with a path of that form. `stand_in` is the origin of what plays
    Amazon SNS where there is none; the operator names it, and must allow it to be called as well."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Refused(401, "names a place that is no URL") from error
    ours = _HOST.fullmatch(host) is not None and parts.netloc.lower() == host and port is None
    if stand_in is not None and f"{parts.scheme}://{parts.netloc}" == stand_in:
        ours = True
    if parts.scheme != "https" or not ours:
        raise Refused(401, f"names a place that is not Amazon SNS: {host[:100]}")
    if path is not None and (not path.fullmatch(parts.path) or parts.query):
        raise Refused(401, "names a certificate that is not one of Amazon SNS")


def verify(message: Any, topics: list[str], versions: list[int], stand_in: str | None, certificates: Certificates, at: datetime) -> str:
    """The type of an SNS message that is signed by SNS and of one of the operator's topics. Raises Refused, or CallError where the
    certificate cannot be fetched for now. The topic is looked at first, so that nobody else's message makes us fetch anything."""
    kind = text(message, "Type")
    fields = _SIGNED.get(kind)
    if fields is None:
        raise Refused(401, "is not a message of Amazon SNS. Raw message delivery must be off for the subscription")
    if text(message, "TopicArn", limit=1000) not in topics:
        raise Refused(403, f"comes from another topic: {text(message, 'TopicArn')}")
    version = text(message, "SignatureVersion")
    if version not in [str(one) for one in versions]:
        raise Refused(401, f"is signed by version {version or 'none'}; set the topic's SignatureVersion to 2, or allow 1")
    try:
        signature = b64decode(text(message, "Signature", limit=2000), validate=True)
    except ValueError as error:
        raise Refused(401, "the signature is not base64") from error
    key = certificates.key(text(message, "SigningCertURL", limit=2000), stand_in, at)
    try:
        key.verify(signature, canonical(message, fields), padding.PKCS1v15(), SHA1() if version == "1" else SHA256())
    except InvalidSignature as error:
        raise Refused(401, "the signature is wrong") from error
    if kind == CONFIRMATION:
        check_place(message["SubscribeURL"], stand_in)
    return kind


def canonical(message: Mapping[str, Any], fields: tuple[str, ...]) -> bytes:
    """What SNS signs: each field's name and value, a line each. Raises Refused where a field is missing or no text."""
    lines = []
    for name in fields:
        value = message.get(name)
        if value is None and name == "Subject":
            continue
        if not isinstance(value, str):
            raise Refused(401, f"lacks {name}")
        lines += [name, value]
    return "".join(f"{line}\n" for line in lines).encode()
