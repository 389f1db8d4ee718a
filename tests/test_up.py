"""`nurture up` with real processes: it starts anywhere, heals what is killed, ends everything it started and nothing else."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, build_opener, urlopen

import psutil
import psycopg
import pytest
import redis

from app import embedded, home
from app.config import CODE
from app.rules.facts import partition_of
from app.supervise import limit_log
from tests.conftest import dsn
from tests.processes import as_user, eventually, full_disk

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

QUIET = ("DATABASE_URL", "REDIS_URL", "SMTP_URL", "NURTURE_HOME", "NURTURE_BASE_URL", "NURTURE_CAMPAIGNS", "NURTURE_SECRET_KEY")
ROLES = ("advance", "deliver", "clock")


def nurture(*arguments, **env: str) -> subprocess.CompletedProcess:
    """Runs one command to its end."""
    return subprocess.run(command(*arguments), env=environment(env), capture_output=True, text=True, timeout=60, check=False)


def command(*arguments) -> list:
    return [sys.executable, "-m", "app.cli", *map(str, arguments)]


def environment(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in QUIET} | {"PYTHONPATH": str(CODE)} | env


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Engine:
    """A running `nurture up`."""

    def __init__(self, home: Path, *arguments: str, user: int | None = None, port: int | None = None, **env: str):
        self.home = home
        self.port = port or free_port()
        self.lines: list[str] = []
        what = command("up", "--home", home, "--port", self.port, *arguments)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        self.process = as_user(what, user, env=environment(env), cwd=CODE, **pipes)
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def ready(self) -> Engine:
        eventually(lambda: "Ctrl-C stops everything" in self.said or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.said
        return self

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, word: str) -> psutil.Process:
        """The direct child whose command line holds `word`."""

        def found() -> list[psutil.Process]:
            children = psutil.Process(self.process.pid).children()
            return [
                child for child in children if word in " ".join(_command_line(child)) and "launch.py" not in " ".join(_command_line(child))
            ]

        return eventually(found)[0]

    def status(self, path: str = "/healthz") -> int:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status
        except HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def answers(self) -> bool:
        return self.status() == 200 and self.status("/readyz") == 200

    def query(self, statement: str):
        with psycopg.connect(dsn(home.running(self.home).database_url)) as conn:
            return conn.execute(statement).fetchone()[0]

    def interrupt(self) -> int:
        """Ctrl-C. Returns the exit code once everything is gone."""
        family = self.family()
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        eventually(lambda: not any(process.is_running() for process in family), 5)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def an_event(engine: Engine, key: str) -> None:
    """Something happens in account `key`, and nobody rings for it."""
    with psycopg.connect(dsn(home.running(engine.home).database_url)) as conn:
        conn.execute(
            """
            with e as (insert into event (source_id, message_id, kind, name, account_key, occurred_at, received_at)
                       values (0, 'test:' || %(key)s, 'group', 'group', %(key)s, now(), now()) returning id)
            insert into event_pending select id, %(place)s, %(key)s, null, now() from e""",
            {"key": key, "place": partition_of(key, 64)},
        )


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def start(request) -> Iterator:
    """Starts engines; those that still run are ended afterwards."""
    engines: list[Engine] = []

    def start(home: Path, *arguments: str, **options) -> Engine:
        engines.append(Engine(home, *arguments, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def private_home(tmp_path) -> Path:
    folder = tmp_path / "only mine"
    folder.mkdir(mode=0o700)
    return folder / "a home"


def test_a_newcomer_gets_a_running_engine_and_ctrl_c_ends_it(start, private_home):
    engine = start(private_home, "--sample").ready()
    assert engine.answers()
    link = re.search(rf"http://127.0.0.1:{engine.port}/console/sign-in/\S+", engine.said)[0]
    with build_opener(HTTPCookieProcessor()).open(link, timeout=10) as page:
        assert (page.status, "sign-in" in page.url) == (200, False)
    assert f"http://127.0.0.1:{engine.port}/dev/outbox" in engine.said
    assert psutil.Process(engine.child("postgres").pid).uids().effective != 0
    # The sample customers' events become accounts, and mail that is kept.
    eventually(lambda: engine.query("select count(*) from account where stage is not null") == 12, 30)
    eventually(lambda: engine.query("select count(*) from event_pending") == 0, 30)
    eventually(lambda: engine.query("select count(*) from outbox") > 0, 30)
    eventually(lambda: engine.query("select count(*) from account where health_at is not null") == 12, 30)
    # Commands beside it find its database.
    made = nurture("keys", "create", "my product", "--scope", "read", "--json", "--home", private_home)
    assert json.loads(made.stdout)["key"].startswith("nk_"), made.stderr
    assert "my product" in nurture("keys", "list", "--home", private_home).stdout
    seen = nurture("doctor", "--json", "--home", private_home)
    assert (seen.returncode, [finding for finding in json.loads(seen.stdout) if not finding["good"]]) == (0, [])
    # A second copy is refused, by the home and by the port.
    again = nurture("up", "--home", private_home, "--port", free_port())
    assert again.returncode == 2 and str(engine.process.pid) in again.stderr and str(private_home) in again.stderr
    assert again.stderr.count("\n") == 1
    elsewhere = nurture("up", "--home", private_home.with_name("b"), "--port", engine.port)
    assert elsewhere.returncode == 2 and f"port {engine.port} cannot be used" in elsewhere.stderr
    assert not (private_home.with_name("b") / "postgres").exists(), "nothing is started before the port is known to be free"
    assert engine.answers()
    assert engine.interrupt() == 0
    assert not (private_home / "urls.json").exists()
    assert private_home.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_start_continues_and_does_not_repeat_the_sample(start, private_home):
    engine = start(private_home, "--sample").ready()
    keys = engine.query("select count(*) from event_key where source_id <> 0")
    assert keys > 100
    engine.interrupt()
    # Between the two, a command runs the database for itself.
    made = nurture("keys", "create", "x", "--json", "--home", private_home)
    assert made.returncode == 0, made.stderr
    engine = start(private_home, "--sample").ready()
    assert engine.query("select count(*) from event_key where source_id <> 0") == keys
    assert engine.query("select count(*) from api_key") == 1
    assert "there already" in engine.said


def test_a_killed_supervisor_leaves_nothing(start, private_home):
    engine = start(private_home).ready()
    family = engine.family()
    assert len(family) > 10
    engine.process.kill()
    engine.process.wait()
    eventually(lambda: not [process for process in family if process.is_running()], 15)
    # And the next one starts over what the killed one has left.
    assert start(private_home).ready().answers()


def test_whoever_is_killed_comes_back(start, private_home):
    engine = start(private_home).ready()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    urls = home.running(private_home)
    for word in ("worker.py advance", "worker.py deliver", "worker.py clock", "gunicorn", "redis-server", "postgres"):
        victim = engine.child(word)
        victim.kill()
        eventually(lambda victim=victim, word=word: engine.child(word).pid != victim.pid and not victim.is_running(), 20)
    eventually(engine.answers, 20)
    eventually(lambda: _works(urls), 20)
    assert redis.Redis.from_url(urls.redis_url).ping()
    assert home.running(private_home) == urls
    assert "postgres was ended by SIGKILL; starting it again" in engine.said
    # Work is done again: an event goes through the workers.
    before = engine.query("select count(*) from account")
    an_event(engine, "k")
    eventually(lambda: engine.query("select count(*) from account") == before + 1, 30)
    # Ctrl-C ends all, also those that were started later, and nothing else.
    assert engine.interrupt() == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def _works(urls: home.Running) -> bool:
    try:
        with psycopg.connect(dsn(urls.database_url)) as conn:
            return conn.execute("select count(*) from account").fetchone() is not None
    except psycopg.OperationalError:
        return False


def test_work_goes_on_without_redis(start, private_home):
    engine = start(private_home, REDIS_URL=f"redis://127.0.0.1:{free_port()}/0").ready()
    assert "working without" in engine.said
    an_event(engine, "k")
    eventually(lambda: engine.query("select count(*) from account") == 1, 30)
    assert engine.interrupt() == 0


def test_work_goes_on_while_redis_is_frozen_and_after_it(start, private_home):
    engine = start(private_home).ready()
    server = engine.child("redis-server")
    server.suspend()
    try:
        an_event(engine, "frozen")
        eventually(lambda: engine.query("select count(*) from account") == 1, 30)
        assert engine.answers()
    finally:
        server.resume()
    redis.Redis.from_url(home.running(private_home).redis_url).flushall()
    an_event(engine, "thawed")
    eventually(lambda: engine.query("select count(*) from account") == 2, 30)
    assert server.is_running()
    assert engine.interrupt() == 0


def test_it_runs_as_an_ordinary_user(start, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("we are an ordinary user already: every other test shows it")
    user = next(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid not in (0, embedded.NOBODY))
    folder = tmp_path / "a home"
    folder.mkdir()
    os.chown(folder, user, user)
    for each in (tmp_path, *tmp_path.parents):
        if each.name.startswith(("pytest-", "test_")):
            os.chmod(each, each.stat().st_mode | 0o011)
    engine = start(folder, user=user).ready()
    assert engine.answers()
    assert {process.uids().effective for process in engine.family()} == {user}
    assert engine.interrupt() == 0


def test_external_servers_are_used_and_left_alone(start, tmp_path):
    postgres, server = embedded.Postgres(tmp_path / "p"), embedded.Redis(tmp_path / "r")
    for folder in (tmp_path / "p", tmp_path / "r"):
        folder.mkdir()
    try:
        postgres.start()
        url = postgres.ensure_database("elsewhere").replace("postgresql+psycopg://", "postgres://")
        engine = start(tmp_path / "home", DATABASE_URL=url, REDIS_URL=server.start()).ready()
        assert "at DATABASE_URL" in engine.said and "at REDIS_URL" in engine.said
        assert engine.answers()
        assert not (tmp_path / "home" / "postgres").exists() and not (tmp_path / "home" / "redis").exists()
        assert engine.query("select current_database()") == "elsewhere"
        assert not [child for child in engine.family() if "postgres" in child.name() or "redis" in child.name()]
        assert engine.interrupt() == 0
        assert postgres.process.poll() is None and server.process.poll() is None
        # A database that a newer version wrote is refused, by every command.
        with psycopg.connect(dsn(url.replace("postgres://", "postgresql://")), autocommit=True) as conn:
            conn.execute("update alembic_version set version_num = '9999'")
        for arguments in (("up", "--port", free_port()), ("keys", "list"), ("migrate",)):
            refused = nurture(*arguments, "--home", tmp_path / "home", DATABASE_URL=url, REDIS_URL=server.url())
            assert refused.returncode == 2 and "a newer Nurture wrote it" in refused.stderr and "Traceback" not in refused.stderr
    finally:
        postgres.stop()
        server.stop()


def test_an_external_database_that_is_away_is_said(tmp_path):
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/x"
    refused = nurture("up", "--home", tmp_path, "--port", free_port(), DATABASE_URL=url)
    assert refused.returncode == 2 and "DATABASE_URL does not answer" in refused.stderr and "Traceback" not in refused.stderr
    seen = nurture("doctor", "--json", "--home", tmp_path, DATABASE_URL=url)
    assert seen.returncode == 1 and json.loads(seen.stdout)[0]["good"] is False


def test_a_home_on_a_full_disk_is_said(tmp_path):
    with full_disk(tmp_path / "disk") as folder:
        refused = nurture("up", "--home", folder / "home", "--port", free_port())
        assert refused.returncode == 2 and "MB are free there" in refused.stderr and refused.stderr.count("\n") == 1
        rest = os.open(folder / "rest", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(rest, b"x" * 1024)
        os.close(rest)
        refused = nurture("up", "--home", folder / "other", "--port", free_port())
        assert refused.returncode == 2 and "Traceback" not in refused.stderr and "No space left" in refused.stderr


def test_a_broken_campaign_file_stops_the_start_with_its_line(tmp_path):
    folder = tmp_path / "campaigns"
    folder.mkdir()
    (folder / "lifecycle.yaml").write_text("timezone: UTC\nstages: [\n")
    refused = nurture("up", "--home", tmp_path / "home", "--port", free_port(), NURTURE_CAMPAIGNS=str(folder))
    assert refused.returncode == 2 and re.search(r"lifecycle\.yaml:\d+", refused.stderr) and "Traceback" not in refused.stderr


def test_ctrl_c_while_it_starts_leaves_nothing(start, private_home):
    engine = start(private_home)
    eventually(lambda: "database" in engine.said)
    family = engine.family()
    engine.process.send_signal(signal.SIGINT)
    assert engine.process.wait(20) == 0
    eventually(lambda: not [process for process in family if process.is_running()], 5)
    assert start(private_home).ready().answers()


def test_a_backup_is_whole_or_not_there(tmp_path):
    done = nurture("backup", tmp_path / "all.dump", "--home", tmp_path / "home", "--json")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "all.dump") as tar:
        assert tar.getnames() == ["manifest.json", "database.dump", "secret"]
    again = nurture("restore", tmp_path / "all.dump", "--home", tmp_path / "moved", "--json")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "moved" / "secret").read_text() == (tmp_path / "home" / "secret").read_text()
    twice = nurture("restore", tmp_path / "all.dump", "--home", tmp_path / "moved")
    assert twice.returncode == 2 and "tables already" in twice.stderr
    failed = nurture("backup", tmp_path / "missing" / "all.dump", "--home", tmp_path / "home")
    assert failed.returncode == 2 and "all.dump: cannot be written" in failed.stderr
    assert (tmp_path / "all.dump").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("**/*.part"))


def test_a_log_is_kept_small_while_somebody_appends_to_it(tmp_path):
    log = tmp_path / "a.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"old\n" * 300)
    limit_log(log, limit=2000)
    assert log.stat().st_size == 1200
    limit_log(log, limit=1000)
    os.write(descriptor, b"new\n")
    os.close(descriptor)
    assert (log.read_bytes(), (tmp_path / "a.log.1").stat().st_size) == (b"new\n", 1200)


def test_settings_that_are_wrong_are_one_clear_line(tmp_path):
    refused = nurture("keys", "list", "--home", tmp_path, SMTP_URL="mailto:me")
    assert (refused.returncode, refused.stderr) == (
        2,
        "nurture: SMTP_URL: must look like smtp://user:password@host:587 (smtps:// for TLS from the start)\n",
    )


def test_production_workers_run_all_roles_and_end_in_order(tmp_path):
    postgres, server = embedded.Postgres(tmp_path), embedded.Redis(tmp_path)
    postgres.start()
    try:
        env = environment({"DATABASE_URL": postgres.ensure_database("nurture"), "REDIS_URL": server.start(), "NURTURE_HOME": str(tmp_path)})
        assert nurture("migrate", "--home", tmp_path, DATABASE_URL=env["DATABASE_URL"]).returncode == 0
        workers = subprocess.Popen([sys.executable, CODE / "worker.py"], env=env, cwd=CODE, stderr=subprocess.PIPE, text=True)
        try:
            me = psutil.Process(workers.pid)
            eventually(lambda: [child for child in me.children() if _command_line(child)[-2:-1] == [str(CODE / "worker.py")]][2:])
            eventually(lambda: redis.Redis.from_url(server.url()).scard("rq:workers") == 2)
            roles = me.children()
            assert sorted(_command_line(child)[-1] for child in roles) == sorted(ROLES)
            workers.terminate()
            assert workers.wait(15) == 0
            eventually(lambda: not [child for child in roles if child.is_running()], 2)
            assert redis.Redis.from_url(server.url()).scard("rq:workers") == 0
        finally:
            workers.kill()
            workers.wait()
            workers.stderr.close()
    finally:
        postgres.stop()
        server.stop()
