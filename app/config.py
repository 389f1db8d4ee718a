"""Settings from the environment. The only module that reads it; a bad value stops start-up and names the variable."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from app.errors import SettingError

PRODUCT = "Nurture"
VERSION = "0.1.0"
CODE = Path(__file__).resolve().parent.parent

_DOMAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an installation is told from outside. Everything else is in `campaigns/lifecycle.yaml` or the database.

    home            folder of everything the engine writes: embedded databases, secret, logs
    database_url    SQLAlchemy URL of PostgreSQL ≥ 15 (psycopg driver); None: `nurture up` runs the embedded one
    redis_url       URL of Redis ≥ 6.2; None: `nurture up` runs the embedded one
    smtp_url        relay: `smtps://user:password@host:465` speaks TLS from the start, `smtp://…:587` demands STARTTLS, except to
                    a loopback address, where it speaks plainly (S-17); `?tls=starttls` and `?tls=none` say otherwise.
                    None: mail goes to the local outbox
    base_url        the public address of the links in mails, without a slash at the end
    secret_key      signs sessions of the console; made once and kept in the home when not given
    campaigns       folder with `lifecycle.yaml`
    inbound_domain  the domain whose mail reaches this installation: bounces, unsubscribe mails and answers to `b+…`, `u+…` and `r+…`;
                    None: mail names no address of ours
    imap_url        a folder that such mail is fetched from: `imaps://user:password@host/folder`, parts percent-encoded; `imap://` speaks
                    plainly, to a loopback address only; `?after=delete` removes what was taken. None: nothing is fetched
    scanner_networks  a file of networks of mail scanners and data centres, one a line: clicks from there are suspected (4.3)
    console_url       the address of the console where it has a host of its own; the host of the links then shows no console (T-15)
    trusted_proxies   addresses and networks of our own reverse proxies, whose X-Forwarded-For is believed
    hosts           names that people's pages are served under besides the base URL's and this machine's own (X-36)
    allow_hosts     places that alerts, webhooks and transports may go to besides public ones (X-22, S-20): (scheme, host, port)
    """

    home: Path
    database_url: str | None
    redis_url: str | None
    smtp_url: str | None
    base_url: str
    secret_key: str
    campaigns: Path
    inbound_domain: str | None = None
    imap_url: str | None = None
    allow_hosts: frozenset[tuple[str, str, int]] = frozenset()
    scanner_networks: Path | None = None
    trusted_proxies: str = ""
    console_url: str | None = None
    hosts: frozenset[str] = frozenset()

    @property
    def console_base(self) -> str:
        """The address of the console, without a slash at the end."""
        return self.console_url or self.base_url

    @property
    def exports(self) -> Path:
        """Where exports of people are kept, and where an erasure finds them."""
        return self.home / "exports"

    @property
    def base_host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def base_is_loopback(self) -> bool:
        return is_loopback(self.base_host)


def load(environ: Mapping[str, str] | None = None, **overrides) -> Settings:
    """Reads the settings from `environ` (the process environment by default); `overrides` win, for the command line,
    except `port`, which only completes the default of `base_url`.

    Raises SettingError naming the variable. Creates the home folder (0700) and, once, its secret; opens no connection.
    """
    env = os.environ if environ is None else environ
    home = Path(overrides.get("home") or env.get("NURTURE_HOME") or CODE / "home").expanduser().resolve()
    _make_home(home)
    base_url = (overrides.get("base_url") or env.get("NURTURE_BASE_URL") or f"http://127.0.0.1:{overrides.get('port') or 8000}").rstrip("/")
    return Settings(
        home=home,
        database_url=_database_url(overrides.get("database_url") or env.get("DATABASE_URL")),
        redis_url=_redis_url(overrides.get("redis_url") or env.get("REDIS_URL")),
        smtp_url=_smtp_url(overrides.get("smtp_url") or env.get("SMTP_URL")),
        base_url=_base_url("NURTURE_BASE_URL", base_url),
        secret_key=_secret_key(home, env.get("NURTURE_SECRET_KEY")),
        campaigns=_campaigns(overrides.get("campaigns") or env.get("NURTURE_CAMPAIGNS")),
        inbound_domain=_inbound_domain(overrides.get("inbound_domain") or env.get("NURTURE_INBOUND_DOMAIN")),
        imap_url=_imap_url(overrides.get("imap_url") or env.get("NURTURE_IMAP_URL")),
        allow_hosts=_allow_hosts(overrides.get("allow_hosts") or env.get("NURTURE_ALLOW_HOSTS")),
        scanner_networks=_scanner_networks(overrides.get("scanner_networks") or env.get("NURTURE_SCANNER_NETWORKS")),
        trusted_proxies=_trusted_proxies(overrides.get("trusted_proxies") or env.get("NURTURE_TRUSTED_PROXIES")),
        console_url=_console_url(overrides.get("console_url") or env.get("NURTURE_CONSOLE_URL")),
        hosts=_hosts(env.get("NURTURE_HOSTS")),
    )


def environment(settings: Settings) -> dict[str, str]:
    """The environment that makes another process of this installation load these very settings."""
    told = {
        "NURTURE_HOME": str(settings.home),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "SMTP_URL": settings.smtp_url,
        "NURTURE_BASE_URL": settings.base_url,
        "NURTURE_CAMPAIGNS": str(settings.campaigns),
        "NURTURE_INBOUND_DOMAIN": settings.inbound_domain,
        "NURTURE_IMAP_URL": settings.imap_url,
        "NURTURE_ALLOW_HOSTS": " ".join(f"{scheme}://{host}:{port}" for scheme, host, port in sorted(settings.allow_hosts)),
        "NURTURE_SCANNER_NETWORKS": str(settings.scanner_networks or ""),
        "NURTURE_TRUSTED_PROXIES": settings.trusted_proxies,
        "NURTURE_CONSOLE_URL": settings.console_url,
        "NURTURE_HOSTS": " ".join(sorted(settings.hosts)),
    }
    return {**os.environ, **{name: value or "" for name, value in told.items()}}


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by name or number. A name that only begins like a number, such as 127.evil.test, is not."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / f".writable.{os.getpid()}"  # processes of one home start together
        try:
            probe.write_bytes(b"x" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise SettingError("NURTURE_HOME", f"cannot write to {home}: {error.strerror}. Free space or choose another folder.") from error


def _database_url(value: str | None) -> str | None:
    if not value:
        return None
    scheme, _, rest = value.partition("://")
    if scheme not in ("postgres", "postgresql", "postgresql+psycopg") or not rest:
        raise SettingError("DATABASE_URL", "must look like postgresql://user:password@host:5432/name")
    return "postgresql+psycopg://" + rest


def _redis_url(value: str | None) -> str | None:
    if not value:
        return None
    if value.partition("://")[0] not in ("redis", "rediss", "unix"):
        raise SettingError("REDIS_URL", "must look like redis://host:6379/0")
    return value


def smtp_problem(value: str) -> str | None:
    """What is wrong with the URL of a relay, as far as its words say (S-17)."""
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 — the property raises on a bad port
    except ValueError as error:
        return f"is no URL: {error}"
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname or any(letter.isspace() or letter < " " for letter in value):
        return "must look like smtp://user:password@host:587 (smtps:// for TLS from the start)"
    if parts.query not in ("", "tls=starttls", "tls=none") or (parts.query and parts.scheme == "smtps"):
        return "the only option is ?tls=starttls or ?tls=none, of smtp://"
    if parts.path.strip("/") or parts.fragment:
        return "must end with the host and its port"
    if parts.username and parts.query == "tls=none" and not is_loopback(parts.hostname):
        return "a user and a password go over TLS only; use smtps:// or ?tls=starttls"
    return None


def _smtp_url(value: str | None) -> str | None:
    if not value:
        return None
    if problem := smtp_problem(value):
        raise SettingError("SMTP_URL", problem)
    return value


def _base_url(name: str, value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingError(name, "must look like https://mail.example.com")
    return value


def _console_url(value: str | None) -> str | None:
    if not value:
        return None
    url = _base_url("NURTURE_CONSOLE_URL", value.rstrip("/"))
    if urlsplit(url).path:
        raise SettingError("NURTURE_CONSOLE_URL", "is a scheme and a host, without a path")
    return url


def _campaigns(value: str | os.PathLike | None) -> Path:
    folder = Path(value).expanduser().resolve() if value else CODE / "campaigns"
    if not folder.is_dir():
        raise SettingError("NURTURE_CAMPAIGNS", f"{folder} is not a folder")
    return folder


def _inbound_domain(value: str | None) -> str | None:
    """In small letters, without a dot at the end. An address at it stands in envelopes, so it is ASCII; 210 characters leave room for the
    local part in a path of 256 (M-12)."""
    if not value:
        return None
    domain = value.strip().rstrip(".").lower()
    if len(domain) > 210 or not _DOMAIN.fullmatch(domain):
        raise SettingError("NURTURE_INBOUND_DOMAIN", "must be the name of a domain, such as bounce.example.com (xn--… for other letters)")
    return domain


def _imap_url(value: str | None) -> str | None:
    if not value:
        return None
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 — the property raises on a bad port
    except ValueError as error:
        raise SettingError("NURTURE_IMAP_URL", f"bad address: {error}") from error
    if parts.scheme not in ("imap", "imaps") or not (parts.hostname and parts.username and parts.password):
        raise SettingError("NURTURE_IMAP_URL", "must look like imaps://user:password@host/folder, with % for special letters")
    if parts.scheme == "imap" and not is_loopback(parts.hostname):
        raise SettingError("NURTURE_IMAP_URL", "imap:// would send the password in the clear; use imaps://")
    if parts.query not in ("", "after=keep", "after=delete"):
        raise SettingError("NURTURE_IMAP_URL", "the only option is ?after=keep or ?after=delete")
    return value


def _allow_hosts(value: str | None) -> frozenset[tuple[str, str, int]]:
    """`crm.internal http://127.0.0.1:9000`: https and its port unless an entry says otherwise."""
    found = set()
    for entry in (value or "").replace(",", " ").split():
        parts = urlsplit(entry if "://" in entry else f"https://{entry}")
        try:
            port = parts.port or {"https": 443, "http": 80, "smtp": 587, "smtps": 465}[parts.scheme]
            if not parts.hostname or "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
                raise ValueError
        except (KeyError, ValueError):
            problem = f"{entry!r} is not a host; write it like crm.internal, http://127.0.0.1:9000 or smtp://relay.internal:25"
            raise SettingError("NURTURE_ALLOW_HOSTS", problem) from None
        host = parts.hostname.rstrip(".")
        found.add((parts.scheme, f"[{host}]" if ":" in host else host, port))
    return frozenset(found)


def _scanner_networks(value: str | None) -> Path | None:
    if not value:
        return None
    file = Path(value).expanduser().resolve()
    if not file.is_file():
        raise SettingError("NURTURE_SCANNER_NETWORKS", f"{file} is not a file")
    return file


def _trusted_proxies(value: str | None) -> str:
    words = (value or "").replace(",", " ").split()
    for word in words:
        try:
            ip_network(word, strict=False)
        except ValueError as error:
            problem = f"{word!r} is neither an address nor a network such as 10.0.0.0/8"
            raise SettingError("NURTURE_TRUSTED_PROXIES", problem) from error
    return " ".join(words)


def _hosts(value: str | None) -> frozenset[str]:
    found = frozenset(entry.lower() for entry in (value or "").replace(",", " ").split())
    for entry in found:
        try:
            named = _DOMAIN.fullmatch(f"{entry}.x") or ip_address(entry.strip("[]"))
        except ValueError:
            named = None
        if not named:
            raise SettingError("NURTURE_HOSTS", f"{entry!r} is not the name of a host; write it like mail.example.com, without a port")
    return frozenset(entry.strip("[]") for entry in found)


def _secret_key(home: Path, value: str | None) -> str:
    if value:
        if len(value) < 32:
            raise SettingError("NURTURE_SECRET_KEY", "needs at least 32 characters")
        return value
    kept = home / "secret"
    if not kept.exists():
        # Written aside and linked into place, so that two processes that start together agree on one secret.
        draft = home / f".secret.{os.getpid()}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        with contextlib.suppress(FileExistsError):
            os.link(draft, kept)
        draft.unlink()
    return kept.read_text().strip()
