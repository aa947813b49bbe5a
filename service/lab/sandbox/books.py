"""The sandbox's books on disk: objects, movements of money, saved answers.

SQLite in WAL mode. One transaction holds a call's objects, its movements and its saved answer, and
is committed before the answer leaves, so `kill -9` at any moment keeps all of it or none.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

Object = dict[str, Any]
# Called after a commit with the event's type and the event as JSON.
Announce = Callable[[str, str], None]

API_VERSION = "2025-03-31.basil"

# Stripe keeps keys for at least 24 hours; one hour more allows for clock differences.
ANSWERS_KEPT_S = 25 * 3600
# Stripe lists events for 30 days.
EVENTS_KEPT_S = 30 * 86400
PRUNE_EVERY_S = 3600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    created INTEGER NOT NULL,
    payment_intent TEXT,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS objects_by_kind ON objects (kind, seq, created);
CREATE INDEX IF NOT EXISTS objects_by_intent ON objects (payment_intent, kind, seq);
CREATE TABLE IF NOT EXISTS movements (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    payment_intent TEXT NOT NULL,
    payment_id TEXT,
    reference TEXT,
    amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    idempotency_key TEXT
);
CREATE INDEX IF NOT EXISTS movements_by_payment_id ON movements (payment_id);
CREATE INDEX IF NOT EXISTS movements_by_reference ON movements (reference);
CREATE TABLE IF NOT EXISTS answers (
    account TEXT NOT NULL,
    key TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    status INTEGER NOT NULL,
    body BLOB NOT NULL,
    request_id TEXT NOT NULL,
    saved_at INTEGER NOT NULL,
    PRIMARY KEY (account, key)
) WITHOUT ROWID;
"""
_MOVEMENT = (
    "at",
    "kind",
    "payment_intent",
    "payment_id",
    "reference",
    "amount",
    "currency",
    "idempotency_key",
)


def new_id(prefix: str) -> str:
    """An id in Stripe's format: the kind's prefix and 24 characters."""
    return f"{prefix}_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """The first answer to a key, with a fingerprint of its request."""

    endpoint: str
    fingerprint: bytes
    status: int
    body: bytes
    request_id: str


class BooksPage:
    """One transaction's view of the books; made by `Books.writing` and `Books.reading`."""

    def __init__(self, connection: sqlite3.Connection, idempotency_key: str | None) -> None:
        self._connection = connection
        self.idempotency_key = idempotency_key
        # Sent after the commit, and only then.
        self.events: list[tuple[str, str]] = []

    def find(self, kind: str, object_id: str) -> Object | None:
        row = self._connection.execute(
            "SELECT body FROM objects WHERE id = ? AND kind = ?", (object_id, kind)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def add(self, item: Object) -> None:
        is_intent = item["object"] == "payment_intent"
        intent_id = item["id"] if is_intent else item.get("payment_intent")
        self._connection.execute(
            "INSERT INTO objects (id, kind, created, payment_intent, body) VALUES (?, ?, ?, ?, ?)",
            (item["id"], item["object"], item["created"], intent_id, _dump(item)),
        )

    def update(self, item: Object) -> None:
        self._connection.execute(
            "UPDATE objects SET body = ? WHERE id = ?", (_dump(item), item["id"])
        )

    def listed(self, kind: str, given: Mapping[str, Any]) -> tuple[list[Object], bool]:
        """A page, newest first, and whether more follow; `given` has Stripe's list parameters."""
        conditions, values = _conditions(kind, given)
        before = given.get("ending_before")
        limit = given.get("limit", 10)
        rows = self._connection.execute(
            f"SELECT body FROM objects WHERE {' AND '.join(conditions)}"  # noqa: S608
            f" ORDER BY seq {'ASC' if before else 'DESC'} LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
        page = [json.loads(row[0]) for row in rows[:limit]]
        return (page[::-1] if before else page), len(rows) > limit

    def move(self, kind: str, intent: Object, amount: int) -> None:
        """Record one movement of money."""
        metadata = intent["metadata"]
        self._connection.execute(
            f"INSERT INTO movements ({', '.join(_MOVEMENT)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                datetime.now(UTC).isoformat(),
                kind,
                intent["id"],
                metadata.get("payment_id"),
                metadata.get("reference"),
                amount,
                intent["currency"],
                self.idempotency_key,
            ),
        )

    def movements(self, wanted: Mapping[str, str]) -> list[Object]:
        """Movements in their order; `wanted` maps columns to their values."""
        where = " AND ".join(f"{column} = ?" for column in wanted) or "1"
        rows = self._connection.execute(
            f"SELECT {', '.join(_MOVEMENT)} FROM movements WHERE {where} ORDER BY seq",  # noqa: S608
            tuple(wanted.values()),
        )
        return [dict(zip(_MOVEMENT, row, strict=True)) for row in rows]

    def announce(self, event_type: str, item: Object) -> None:
        """Record an event with the object as it is now, and send it once this page is committed."""
        event = {
            "id": new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": int(time()),
            "data": {"object": item},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": self.idempotency_key},
            "type": event_type,
        }
        self.add(event)
        self.events.append((event_type, _dump(event)))

    def saved_answer(self, account: str, key: str) -> SavedAnswer | None:
        row = self._connection.execute(
            "SELECT endpoint, fingerprint, status, body, request_id FROM answers"
            " WHERE account = ? AND key = ?",
            (account, key),
        ).fetchone()
        return None if row is None else SavedAnswer(*row)

    def save_answer(self, account: str, key: str, saved: SavedAnswer) -> None:
        self._connection.execute(
            "INSERT INTO answers (account, key, endpoint, fingerprint, status, body, request_id,"
            " saved_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                account,
                key,
                saved.endpoint,
                saved.fingerprint,
                saved.status,
                saved.body,
                saved.request_id,
                int(time()),
            ),
        )


def _conditions(kind: str, given: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    conditions: list[str] = ["kind = ?"]
    values: list[Any] = [kind]
    operators = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
    for bound, moment in given.get("created", {}).items():
        conditions.append(f"created {operators[bound]} ?")
        values.append(moment)
    for name, operator in (("starting_after", "<"), ("ending_before", ">")):
        if given.get(name):
            conditions.append(f"seq {operator} (SELECT seq FROM objects WHERE id = ?)")  # noqa: S608
            values.append(given[name])
    if given.get("payment_intent"):
        conditions.append("payment_intent = ?")
        values.append(given["payment_intent"])
    types = [given["type"]] if given.get("type") else given.get("types")
    if types:
        names = ", ".join("?" * len(types))
        conditions.append(f"json_extract(body, '$.type') IN ({names})")
        values.extend(types)
    for name in ("customer", "charge", "status"):
        if given.get(name):
            conditions.append(f"json_extract(body, '$.{name}') = ?")
            values.append(given[name])
    return conditions, values


def _dump(item: Object) -> str:
    return json.dumps(item, separators=(",", ":"))


class Books:
    """The books. Any number of threads may call every method; a lock serializes them."""

    def __init__(self, path: Path, *, announce: Announce) -> None:
        self._announce = announce
        self._turn = threading.Lock()
        self._prune_at = 0.0
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # NORMAL: a commit survives the death of the process; only a power cut may undo the last one.
        self._connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;"
        )
        self._connection.executescript(_SCHEMA)

    @contextmanager
    def writing(self, *, idempotency_key: str | None) -> Iterator[BooksPage]:
        """A page that is committed when the block ends, and rolled back when it raises."""
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._prune()
                page = BooksPage(self._connection, idempotency_key)
                yield page
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        for event_type, event_json in page.events:
            self._announce(event_type, event_json)

    @contextmanager
    def reading(self) -> Iterator[BooksPage]:
        """A page for reading only."""
        with self._turn:
            yield BooksPage(self._connection, None)

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def _prune(self) -> None:
        if time() < self._prune_at:
            return
        self._prune_at = time() + PRUNE_EVERY_S
        self._connection.execute(
            "DELETE FROM answers WHERE saved_at < ?", (int(time()) - ANSWERS_KEPT_S,)
        )
        self._connection.execute(
            "DELETE FROM objects WHERE kind = 'event' AND created < ?",
            (int(time()) - EVENTS_KEPT_S,),
        )
