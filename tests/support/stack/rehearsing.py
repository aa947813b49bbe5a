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
from tests.support.stack.running_house import House, running_house, wait_for

# The smallest configuration with room for two copies.
SMALL = {"HOLDFAST_WEB_WORKERS": "2", "HOLDFAST_WEB_THREADS": "8", "HOLDFAST_DB_POOL_SIZE": "4"}


def ask(house: House, method: str, path: str, **options: Any) -> requests.Response:
    """One call to the ops plane with the operator's key."""
    headers = {"Authorization": f"Bearer {house.api_key}", **options.pop("headers", {})}
    return requests.request(method, house.ops_url + path, headers=headers, timeout=120, **options)


def begin(house: House, name: str, **body: Any) -> str:
    """Start a simulation; returns the address of its run."""
    begun = ask(house, "POST", f"/simulate/{name}", json=body)
    assert begun.status_code == 202, begun.text
    return begun.headers["Location"]


def begin_drill(house: House, name: str, **body: Any) -> str:
    """Start a drill; returns the address of its run."""
    begun = ask(house, "POST", "/drills", json={"drill": name, **body})
    assert begun.status_code == 202, begun.text
    return begun.headers["Location"]


def phase(house: House, where: str) -> str:
    return str(ask(house, "GET", where).json()["phase"])


def wait_until_struck(house: House, where: str) -> None:
    wait_for(lambda: phase(house, where) == "fault", timeout_s=180)


def ended(house: House, where: str, timeout_s: float = 240.0) -> dict[str, Any]:
    """The run's document after its end."""

    def if_ended() -> dict[str, Any] | None:
        run: dict[str, Any] = ask(house, "GET", where).json()
        return run if run["status"] == "ended" else None

    run: dict[str, Any] = wait_for(if_ended, timeout_s=timeout_s)
    return run


def drilled(house: House, name: str, **body: Any) -> dict[str, Any]:
    """A drill's report; repeated if callers waited as long in the baseline, which shows an overloaded
    machine and proves nothing about the service."""
    for _ in range(3):
        run = ended(house, begin_drill(house, name, **body))
        if "in the baseline too" not in run["summary"]:
            break
    return run


def faults(house: House) -> set[str]:
    """The modes of the current faults on the local stack's links."""
    links = ask(house, "GET", "/simulate").json()["links"]
    return {link["mode"] for link in links.values() if link["mode"]}


def rows(house: House, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a query, directly from the database."""
    connection = psycopg2.connect(house.database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())
    finally:
        connection.close()


def settle_all(house: House) -> None:
    """Wait until no payment is queued or in doubt: an old doubt would block the next drill."""

    hurry = """
        UPDATE payments SET due_at = now()
        WHERE status = 'unknown' AND NOT leased AND due_at > now() + interval '1 second'
    """
    unsettled = """
        SELECT count(*) FROM payments WHERE status IN ('queued', 'sending', 'unknown')
    """
    connection = psycopg2.connect(house.database_url)
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


def come_to_rest(house: House) -> None:
    """End what an earlier test began: one rehearsal runs at a time, and an old doubt refuses the next."""
    ask(house, "DELETE", "/simulate")
    wait_for(lambda: ask(house, "GET", "/simulate").json()["running"] is None, timeout_s=120)
    settle_all(house)


def ops_worker(house: House) -> int:
    """The process that runs drills: the one worker of the ops plane."""
    master = house.pids["ops_plane"]
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
def rehearsing_house(home: Path, **settings: str) -> Iterator[tuple[House, TemporaryFiles]]:
    """A small local stack with a separate directory for temporary files."""
    # A short path, because sockets are in it; open to PostgreSQL's user.
    path = Path(tempfile.mkdtemp(prefix="t-"))
    path.chmod(0o711)
    try:
        with running_house(home, **{**SMALL, "TMPDIR": str(path), **settings}) as house:
            yield house, TemporaryFiles(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
