"""What every test may ask for: a real PostgreSQL and a real Redis, an empty migrated database of its own, an application.

One cluster per test process; each test that asks for `engine` gets a database copied from a migrated template.
"""

from __future__ import annotations

import os
import shutil
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app import create_app, db, embedded
from app.config import load
from app.migrate import migrate

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)  # a Monday morning

# Durability is PostgreSQL's own to test; tests that kill servers start their own with it on.
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "60", "shared_buffers": "64MB"}


@pytest.fixture(scope="session")
def cluster_home():
    home = Path(tempfile.mkdtemp(prefix="nurture-test-", dir="/tmp"))
    os.chmod(home, 0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(cluster_home):
    server = embedded.Postgres(cluster_home, FAST)
    server.start()
    with psycopg.connect(dsn(server.url("postgres")), autocommit=True) as conn:
        conn.execute("create database template_nurture")
    engine = db.connect(server.url("template_nurture"))
    migrate(engine, NOW)
    engine.dispose()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(cluster_home):
    server = embedded.Redis(cluster_home)
    url = server.start()
    yield url
    server.stop()


@pytest.fixture
def database(postgres):
    """The URL of an empty, migrated database that lives for one test."""
    name = "t_" + uuid4().hex
    with psycopg.connect(dsn(postgres.url("postgres")), autocommit=True) as conn:
        conn.execute(f"create database {name} template template_nurture")
        yield postgres.url(name)
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def engine(database):
    engine = db.connect(database)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(database, redis_server, tmp_path):
    return load(
        {
            "NURTURE_HOME": str(tmp_path / "home"),
            "DATABASE_URL": database,
            "REDIS_URL": redis_server,
            "NURTURE_BASE_URL": "http://127.0.0.1:8000",
        }
    )


@pytest.fixture
def app(settings):
    app = create_app(settings)
    app.config["TESTING"] = True
    yield app
    app.extensions["nurture"].engine.dispose()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate for hooks.example.com that signs itself, and the two contexts that use it: server's, caller's."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nurture test")])
    now = datetime.now(UTC)
    names = [x509.DNSName("hooks.example.com"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(pem + secret)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def dsn(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")
