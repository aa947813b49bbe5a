"""A PostgreSQL cluster that is initialised and migrated once in a test run, and copied for each server.

`initdb` and the migrations need seconds of processor time, and a test run starts dozens of servers.
`tests/integration/database/test_embedded.py` and `tests/incidents/test_local_run.py` start without a copy, as a user does.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.database.migrate.runner import migrate
from service.lab.local import embedded
from service.lab.local.embedded import OWNER, EmbeddedPostgres

# The default of `python -m service run`; each start sets its own value.
STATEMENT_TIMEOUT_MS = 2000
# The environment variable with the directory of the run: workers inherit it.
DIRECTORY = "HOLDFAST_TESTS_TEMPLATE"
# A file system in memory: a database is a thousand files, and a disk's journal makes each of them dear.
MEMORY = Path("/dev/shm")
# What a run needs there at most, with room for the programs.
MEMORY_BYTES = 6 << 30


def begin_run() -> None:
    """Create the directory of this run; the template follows at its first use."""
    if "TMPDIR" not in os.environ and _has_room(MEMORY):
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None
    os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="holdfast-test-")
    # As root, PostgreSQL runs as another user.
    Path(os.environ[DIRECTORY]).chmod(0o711)


def end_run() -> None:
    shutil.rmtree(os.environ.pop(DIRECTORY), ignore_errors=True)


def of_run(name: str) -> Path:
    """A path that only the workers of this run share."""
    return Path(os.environ[DIRECTORY]) / name


def _has_room(memory: Path) -> bool:
    """Whether it is there, takes files and programs, and is as large as a run may need."""
    if not os.access(memory, os.W_OK | os.X_OK):
        return False
    there = os.statvfs(memory)
    if there.f_flag & os.ST_NOEXEC or there.f_bavail * there.f_frsize < MEMORY_BYTES:
        return False
    told = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return told is not None and int(told[1]) << 10 >= MEMORY_BYTES


def put_into(home: Path) -> None:
    """Copy the migrated cluster into `home`; do nothing if `home` has one, or outside a test run."""
    if DIRECTORY not in os.environ:
        return
    home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0 and not (home / "postgres").exists():
        # Where PostgreSQL's user has access to: the service's own choice would be on the disk.
        elsewhere = tempfile.mkdtemp(prefix="postgres-", dir=os.environ[DIRECTORY])
        (home / "postgres").symlink_to(elsewhere)
    uid_gid = embedded._service_user(home / "postgres") if os.geteuid() == 0 else None
    base = embedded._base_directory(home, uid_gid)
    if not (base / "data").exists():
        subprocess.run(["cp", "-a", _template() / "postgres" / "data", base / "data"], check=True)


def _template() -> Path:
    """The home of the cluster to copy; the first worker creates it."""
    home = of_run("home")
    with _locked(home.with_name("lock")):
        if not home.exists():
            new = home.with_name("new")
            new.mkdir(mode=0o711)
            _make(new)
            new.rename(home)
    return home


def _make(home: Path) -> None:
    server = EmbeddedPostgres(home, options=("fsync=off",))
    server.start()
    try:
        migrate(
            server.url(OWNER),
            app_dsn=server.app_url,
            app_statement_timeout_ms=STATEMENT_TIMEOUT_MS,
        )
    finally:
        server.stop()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
