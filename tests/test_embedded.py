"""The embedded servers: they start wherever the home is and whoever we are, die with us, and cope with what a kill leaves."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from app import embedded
from app.children import LAUNCH, launch
from app.config import CODE
from app.errors import HomeInUse, StartError
from app.home import Lock
from tests.processes import as_user, eventually, full_disk

pytestmark = pytest.mark.processes

# initdb wants its user to have a name.
ORDINARY = next(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid not in (0, embedded.NOBODY))


@pytest.fixture
def home(tmp_path):
    """A home whose path has spaces and umlauts, below a folder that only its owner may enter."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    home = private / "my höme"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture(autouse=True)
def no_litter(tmp_path):
    """A killed parent leaves its socket folders to the next start on that home; here there may be none."""
    yield
    for kept in tmp_path.rglob(".*.sockets"):
        shutil.rmtree(kept.read_text(), ignore_errors=True)


@pytest.fixture
def postgres(home):
    server = embedded.Postgres(home)
    server.start()
    yield server
    server.stop()


def query(server, statement: str):
    with psycopg.connect(f"host={server.sockets} user=nurture dbname=postgres", autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def test_postgres_runs_in_a_private_home_without_root_and_without_opening_it(home, postgres):
    assert query(postgres, "select lower('ÄÖÜ') || current_setting('server_encoding')") == "äöüUTF8"
    assert query(postgres, "show listen_addresses") == ""
    assert psutil.Process(postgres.process.pid).uids().effective != 0
    assert (home.parent.stat().st_mode & 0o777, home.stat().st_mode & 0o777) == (0o700, 0o700)
    assert len(str(postgres.sockets / ".s.PGSQL.5432")) < 100
    assert postgres.sockets.stat().st_mode & 0o077 == 0


def test_redis_keeps_what_it_was_told(home):
    server = embedded.Redis(home)
    url = server.start()
    redis.Redis.from_url(url).set("a", "1")
    assert redis.Redis.from_url(url).config_get("appendonly") == {"appendonly": "yes"}
    server.stop()
    assert not server.sockets.parent.exists()
    again = embedded.Redis(home)
    try:
        assert redis.Redis.from_url(again.start()).get("a") == b"1"
    finally:
        again.stop()


def test_a_redis_file_that_cannot_be_read_is_put_aside(home):
    server = embedded.Redis(home)
    server.start()
    server.stop()
    [file] = server.data.glob("*.aof")
    file.write_bytes(b"*9\r\nrubbish\r\n" * 50)
    try:
        assert redis.Redis.from_url(server.start()).dbsize() == 0
    finally:
        server.stop()
    assert len(list(home.glob("redis.unreadable-*"))) == 1


def test_a_killed_server_starts_again_at_the_same_address_with_its_data(postgres):
    query(postgres, "create table kept (a int)")
    query(postgres, "insert into kept values (7)")
    url = postgres.url("postgres")
    postgres.process.kill()
    postgres.process.wait()
    eventually(lambda: _relaunch(postgres))
    assert postgres.url("postgres") == url
    assert query(postgres, "select a from kept") == 7


def _relaunch(postgres) -> bool:
    # Backends of the dead server may live for a moment, and PostgreSQL refuses to start beside them.
    if postgres.process.poll() is not None:
        postgres.launch()
    try:
        return query(postgres, "select true")
    except psycopg.OperationalError:
        return False


def test_a_pid_file_that_names_somebody_else_now_does_not_stop_the_start(home, postgres):
    postgres.process.kill()
    postgres.process.wait()
    pid_file = postgres.data / "postmaster.pid"
    stranger = as_user([sys.executable, "-c", "import time; time.sleep(60)"], embedded.NOBODY if os.geteuid() == 0 else None)
    try:
        lines = pid_file.read_text().split("\n")
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        time.sleep(0.3)  # the dead server's backends go
        server = embedded.Postgres(home)
        try:
            server.start()
            assert query(server, "select 1") == 1
            assert stranger.poll() is None
        finally:
            server.stop()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_first_start_that_was_killed_leaves_no_half_of_a_cluster(home):
    draft = home / "postgres.new"
    (draft / "base").mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    server = embedded.Postgres(home)
    try:
        server.start()
        assert query(server, "select count(*) from pg_database") == 3
        assert not draft.exists()
    finally:
        server.stop()


PARENT = """
import sys, time
from pathlib import Path
from app import embedded
postgres, redis = embedded.Postgres(Path(sys.argv[1])), embedded.Redis(Path(sys.argv[1]))
postgres.start(), redis.start()
print(postgres.process.pid, redis.process.pid, flush=True)
time.sleep(600)
"""


def test_servers_die_with_a_parent_that_is_killed(home):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, home], cwd=CODE, stdout=subprocess.PIPE, text=True)
    servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    family = servers + [child for server in servers for child in server.children(recursive=True)]
    left = Path((home / ".postgres.sockets").read_text())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not any(process.is_running() for process in family), 10)
    server = embedded.Postgres(home)
    try:
        assert left.exists()
        server.start()
        assert not left.exists(), "the next start removes the socket folder that the killed one has left"
    finally:
        server.stop()


def test_the_babysitter_ends_its_child_when_the_pipe_closes(tmp_path):
    """What stands in for the kernel's help on other systems than Linux."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-I", "-S", LAUNCH, "--parent", str(os.getpid()), "--watch", str(ours), "--"]
    sitter = subprocess.Popen([*command, "/bin/sleep", "600"], pass_fds=(ours,))
    os.close(ours)
    try:
        eventually(lambda: psutil.Process(sitter.pid).children())
        [sleeper] = psutil.Process(sitter.pid).children()
        os.close(theirs)
        assert sitter.wait(10) == 128 + signal.SIGTERM
        eventually(lambda: not sleeper.is_running())
    finally:
        sitter.kill()
        sitter.wait()


def test_a_home_has_one_engine(home):
    first, second = Lock(home, "up"), Lock(home, "up")
    first.take()
    with pytest.raises(HomeInUse) as refused:
        second.take()
    assert str(os.getpid()) in str(refused.value) and str(home) in str(refused.value)
    first.release()
    second.take()
    second.release()


def test_a_command_is_waited_for(home):
    command, engine = Lock(home, "keys create"), Lock(home, "up")
    command.take()
    with pytest.raises(HomeInUse):
        engine.take(wait=0.2)
    command.release()
    engine.take(wait=0.2)
    engine.release()


def test_a_full_disk_is_said(tmp_path):
    with full_disk(tmp_path / "disk") as home, pytest.raises(StartError, match="MB are free there"):
        embedded.Postgres(home).start()


def test_a_cluster_of_another_major_version_is_refused(home):
    server = embedded.Postgres(home)
    server.start()
    server.stop()
    (server.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(StartError, match="made by PostgreSQL 16"):
        server.start()


def test_it_works_as_an_ordinary_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("we are an ordinary user already: every other test shows it")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, ORDINARY, ORDINARY)
    _open_way_to(tmp_path)
    parent = as_user([sys.executable, "-c", PARENT, home], ORDINARY, cwd=CODE, stdout=subprocess.PIPE, text=True)
    try:
        servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert [server.uids().effective for server in servers] == [ORDINARY, ORDINARY]
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    eventually(lambda: not any(server.is_running() for server in servers))


def test_a_program_closed_to_others_runs_without_root(tmp_path):
    """An installation made under umask 077 belongs to root alone."""
    if os.geteuid() != 0:
        pytest.skip("only root gives up root")
    program = tmp_path / "closed" / "id"
    program.parent.mkdir(mode=0o700)
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o700)
    log = tmp_path / "log"
    process = launch([program, "-u"], log, death="SIGTERM", user=embedded.NOBODY, reach=[program])
    assert process.wait(10) == 0
    assert log.read_text() == f"{embedded.NOBODY}\n"


@pytest.mark.parametrize(
    ("missing", "words"),
    [("dac_override,-dac_read_search", "cannot reach|may not become another user"), ("setuid,-setgid", "may not become another user")],
)
def test_root_without_the_capabilities_it_takes_is_told_what_to_do(home, missing, words):
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to take capabilities away")
    told = subprocess.run(
        ["setpriv", f"--bounding-set=-{missing}", sys.executable, "-c", PARENT, home], cwd=CODE, capture_output=True, text=True, timeout=30
    )
    assert re.search(f"StartError: .*({words})", told.stderr), told.stderr


def _open_way_to(folder: Path) -> None:
    for each in (folder, *folder.parents):
        if each.stat().st_uid == os.geteuid() and each.name.startswith(("pytest-", "test_")):
            os.chmod(each, each.stat().st_mode | 0o011)


def test_a_user_without_a_name_is_told_what_to_do(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become such a user")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 47111, 47111)
    _open_way_to(tmp_path)
    told = as_user([sys.executable, "-c", PARENT, home], 47111, cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "user 47111 has no name here" in told.communicate(timeout=30)[1]
