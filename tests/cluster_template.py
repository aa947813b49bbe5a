"""A PostgreSQL cluster, initialised and migrated once in a run of the tests; whoever starts one gets a copy.

A first start takes seconds of a processor, and a run starts dozens. `tests/integration/test_embedded.py` and
`tests/incidents/test_local_run.py` start without it, as a user does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.database import embedded
from service.database.embedded import OWNER, EmbeddedPostgres
from service.database.migrate import migrate

# What `python -m service run` sets by default; each start sets its own again.
STATEMENT_TIMEOUT_MS = 2000
# Where the run's template is: the process that begins the run says so to its workers.
DIRECTORY = "HOLDFAST_TESTS_TEMPLATE"


def begin_run() -> None:
    """Give this run a template of its own; it is made when it is needed first."""
    os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="holdfast-test-")
    # PostgreSQL runs as another user where we are root.
    Path(os.environ[DIRECTORY]).chmod(0o711)


def end_run() -> None:
    shutil.rmtree(os.environ.pop(DIRECTORY), ignore_errors=True)


def of_run(name: str) -> Path:
    """A path that the workers of this run share, and no other run."""
    return Path(os.environ[DIRECTORY]) / name


def put_into(home: Path) -> None:
    """A migrated cluster in this home, as a start before would have left it; none where one is, or outside of a run."""
    if DIRECTORY not in os.environ:
        return
    home.mkdir(parents=True, exist_ok=True)
    uid_gid = embedded._service_user(home / "postgres") if os.geteuid() == 0 else None
    base = embedded._base_directory(home, uid_gid)
    if not (base / "data").exists():
        subprocess.run(["cp", "-a", _template() / "postgres" / "data", base / "data"], check=True)


def _template() -> Path:
    """The home of the one cluster that is copied; made by whichever worker comes first."""
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
