"""A running local stack with drills over REST, and checks of their remains."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import requests

from service.lab.drills.pair import HOME_PREFIX
from tests.support.stack.running_stack import RunningStack, running_stack, wait_for

# The smallest configuration with room for two copies.
SMALL = {"HOLDFAST_WEB_WORKERS": "2", "HOLDFAST_WEB_THREADS": "8", "HOLDFAST_DB_POOL_SIZE": "4"}


def ask(local_stack: RunningStack, method: str, path: str, **options: Any) -> requests.Response:
    """One call to the ops plane with the operator's key."""
    headers = {"Authorization": f"Bearer {local_stack.api_key}", **options.pop("headers", {})}
    return requests.request(
        method, local_stack.ops_url + path, headers=headers, timeout=120, **options
    )


def begin(local_stack: RunningStack, name: str, **body: Any) -> str:
    """Start a simulation; returns the address of its run."""
    begun = ask(local_stack, "POST", f"/simulate/{name}", json=body)
    assert begun.status_code == 202, begun.text
    return begun.headers["Location"]


def begin_drill(local_stack: RunningStack, name: str, **body: Any) -> str:
    """Start a drill; returns the address of its run."""
    begun = ask(local_stack, "POST", "/drills", json={"drill": name, **body})
    assert begun.status_code == 202, begun.text
    return begun.headers["Location"]


def phase(local_stack: RunningStack, where: str) -> str:
    return str(ask(local_stack, "GET", where).json()["phase"])


def wait_until_struck(local_stack: RunningStack, where: str) -> None:
    wait_for(lambda: phase(local_stack, where) == "fault", timeout_s=180)


def ended(local_stack: RunningStack, where: str, timeout_s: float = 240.0) -> dict[str, Any]:
    """The run's document after its end."""

    def if_ended() -> dict[str, Any] | None:
        run: dict[str, Any] = ask(local_stack, "GET", where).json()
        return run if run["status"] == "ended" else None

    run: dict[str, Any] = wait_for(if_ended, timeout_s=timeout_s)
    return run


def drilled(local_stack: RunningStack, name: str, **body: Any) -> dict[str, Any]:
    """A drill's report; repeated if callers waited as long in the baseline, which shows an overloaded
    machine and proves nothing about the service."""
    for _ in range(3):
        run = ended(local_stack, begin_drill(local_stack, name, **body))
        if "in the baseline too" not in run["summary"]:
            break
    return run


def faults(local_stack: RunningStack) -> set[str]:
    """The modes of the current faults on the local stack's links."""
    links = ask(local_stack, "GET", "/simulate").json()["links"]
    return {link["mode"] for link in links.values() if link["mode"]}


def rows(local_stack: RunningStack, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a query, directly from the database."""
    connection = psycopg2.connect(local_stack.database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())
    finally:
        connection.close()


def settle_all(local_stack: RunningStack) -> None:
    """Wait until no payment is queued or in doubt: an old doubt would block the next drill."""

    hurry = """
        UPDATE payments SET due_at = now()
        WHERE status = 'unknown' AND NOT leased AND due_at > now() + interval '1 second'
    """
    unsettled = """
        SELECT count(*) FROM payments WHERE status IN ('queued', 'sending', 'unknown')
    """
    connection = psycopg2.connect(local_stack.database_url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:

            def is_settled() -> bool:
                # The pauses between look-ups grow to minutes; they are not under test.
                cursor.execute(hurry)
                cursor.execute(unsettled)
                return bool(cursor.fetchone() == (0,))

            wait_for(is_settled, timeout_s=180, every_s=0.5)
    finally:
        connection.close()


def come_to_rest(local_stack: RunningStack) -> None:
    """End what an earlier test began: one rehearsal runs at a time, and an old doubt refuses the next."""
    ask(local_stack, "DELETE", "/simulate")
    wait_for(lambda: ask(local_stack, "GET", "/simulate").json()["running"] is None, timeout_s=120)
    settle_all(local_stack)


def ops_worker(local_stack: RunningStack) -> int:
    """The process that runs drills: the one worker of the ops plane."""
    master = local_stack.pids["ops_plane"]
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


class TemporaryFiles:
    """A directory for a local stack's temporary files, and the processes that still use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pairs(self) -> list[Path]:
        """The remaining homes of pairs."""
        return list(self.path.glob(f"{HOME_PREFIX}*"))

    def processes(self) -> list[int]:
        """Processes of pairs that still run: copies, their workers and managers, the proxy."""
        mark = f"{self.path}/{HOME_PREFIX}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in said:
                found.append(int(process.name))
        return found


@contextmanager
def drilling_stack(home: Path, **settings: str) -> Iterator[tuple[RunningStack, TemporaryFiles]]:
    """A small local stack with a separate directory for temporary files."""
    # A short path, because sockets are in it; open to PostgreSQL's user.
    path = Path(tempfile.mkdtemp(prefix="t-"))
    path.chmod(0o711)
    try:
        with running_stack(home, **{**SMALL, "TMPDIR": str(path), **settings}) as local_stack:
            yield local_stack, TemporaryFiles(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
