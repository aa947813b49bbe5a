"""Merchants and their API keys: creation, storage and look-up of keys."""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg2.extensions

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import WrongState
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.resilience.deadline import Deadline

Mode = Literal["test", "live"]
SCOPES = ("payments", "refunds", "read", "operator")
# For acts on the whole instance: drills, simulations, the kill switch, writes of the ops plane. Only
# the command line and the first start grant it; `/v1/api_keys` cannot.
PLATFORM = "platform"
ALL_SCOPES = (*SCOPES, PLATFORM)
# Fixed, so that two instances that start together create the same one.
DEFAULT_MERCHANT_ID = UUID("00000000-0000-7000-8000-000000000001")
# The tenant of drills: its payments count in no service level.
DRILL_MERCHANT_ID = UUID("00000000-0000-7000-8000-00000000d211")

# The length of a list; each of a merchant's programs has one key, and two during a replacement.
LIVE_KEYS_MAX = 50

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62^32 secrets are more than 190 bits, so that a plain SHA-256 in storage is enough.
_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 12, 32, 6
_KEY = re.compile(
    rf"hf_(?P<mode>test|live)_(?P<key_id>[0-9A-Za-z]{{{_ID_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}"
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row of `api_keys`. Only the secret's hash is stored."""

    key_id: str
    merchant_id: UUID
    secret_sha256: bytes
    mode: Mode
    scopes: frozenset[str]
    label: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    # By the database's clock.
    is_live: bool
    # The key was used, but its use was not recorded for a minute.
    touch_due: bool
    # A field of the merchant, read with the key, so that a payment needs no second read.
    has_too_many_open: bool


def generate_key(mode: Mode) -> str:
    """A new API key: `hf_test_<id>_<secret><checksum>`."""
    key_id = _random(_ID_LENGTH)
    body = f"hf_{mode}_{key_id}_{_random(_SECRET_LENGTH)}"
    return body + _checksum(body)


def parse_key(api_key: str) -> tuple[Mode, str] | None:
    """The mode and the public id of a key; None for text that is not one of our keys."""
    match = _KEY.fullmatch(api_key)
    if match is None:
        return None
    body, checksum = api_key[:-_CHECKSUM_LENGTH], api_key[-_CHECKSUM_LENGTH:]
    if _checksum(body) != checksum:
        return None
    return ("test" if match["mode"] == "test" else "live"), match["key_id"]


def hash_key(api_key: str) -> bytes:
    """The hash that is stored and compared instead of the key."""
    return hashlib.sha256(api_key.encode()).digest()


def bootstrap(
    connection: psycopg2.extensions.connection,
    api_key: str,
    mode: Mode,
    actor: Actor = audit.SERVICE,
) -> None:
    """Create the default merchant and its first key with all scopes; safe to repeat.

    The holder of the setting is the platform's operator: an existing key gets the scope.

    Raises ValueError for text that is not an API key of that mode.
    """
    parsed = parse_key(api_key)
    if parsed is None or parsed[0] != mode:
        raise ValueError(f"not an API key that begins with hf_{mode}_ and ends in its checksum")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO merchants (merchant_id, name) VALUES (%s::uuid, 'default')"
            " ON CONFLICT (merchant_id) DO NOTHING",
            (str(DEFAULT_MERCHANT_ID),),
        )
        # One statement, because the connection may be in autocommit.
        cursor.execute(
            f"""
            WITH made AS (
                INSERT INTO api_keys
                    (key_id, merchant_id, secret_sha256, mode, scopes, label, platform)
                VALUES (%(key_id)s, %(owner)s::uuid, %(secret_sha256)s, %(mode)s, %(scopes)s,
                        'bootstrap', true)
                ON CONFLICT (key_id) DO UPDATE SET platform = true
                WHERE NOT api_keys.platform AND api_keys.revoked_at IS NULL
                  AND api_keys.secret_sha256 = excluded.secret_sha256
                RETURNING key_id
            )
            {audit.WRITE_SQL} SELECT {audit.WRITE_VALUES} FROM made
            """,  # Only our own SQL is put in.
            {
                "key_id": parsed[1],
                "owner": str(DEFAULT_MERCHANT_ID),
                "secret_sha256": hash_key(api_key),
                "mode": mode,
                "scopes": list(SCOPES),
                **audit.params_of(
                    actor,
                    Entry(
                        "api_key.bootstrapped",
                        DEFAULT_MERCHANT_ID,
                        target=parsed[1],
                        detail={"mode": mode, "scopes": ALL_SCOPES},
                    ),
                ),
            },
        )
    if not connection.autocommit:
        connection.commit()


_COLUMNS = """
    key_id, merchant_id, secret_sha256, mode, scopes, platform, label, created_at, last_used_at, expires_at,
    revoked_at, revoked_at IS NULL AND coalesce(expires_at > now(), true),
    coalesce(last_used_at < now() - interval '1 minute', true),
    coalesce((SELECT has_too_many_open FROM merchants m
              WHERE m.merchant_id = api_keys.merchant_id), false)
"""

_FIND = Statement(
    "key_find",
    f"SELECT {_COLUMNS} FROM api_keys WHERE key_id = %(key_id)s::text",
)
_CREATE = Statement(
    "key_create",
    f"""
    INSERT INTO api_keys
        (key_id, merchant_id, secret_sha256, mode, scopes, platform, label, expires_at)
    SELECT %(key_id)s::text, %(merchant_id)s::uuid, %(secret_sha256)s::bytea, %(mode)s::text,
           %(scopes)s::text[], %(platform)s::boolean, %(label)s::text, %(expires_at)s::timestamptz
    WHERE (SELECT count(*) FROM api_keys WHERE merchant_id = %(merchant_id)s::uuid
           AND revoked_at IS NULL AND coalesce(expires_at > now(), true)) < %(most)s::integer
    RETURNING {_COLUMNS}
    """,  # Only our own column list is put in.
)
_LIST = Statement(
    "key_list",
    f"""
    SELECT {_COLUMNS} FROM api_keys WHERE merchant_id = %(merchant_id)s::uuid
    ORDER BY created_at DESC, key_id LIMIT 100
    """,
)
_REVOKE = Statement(
    "key_revoke",
    """
    UPDATE api_keys SET revoked_at = now()
    WHERE merchant_id = %(merchant_id)s::uuid AND key_id = %(key_id)s::text AND revoked_at IS NULL
    RETURNING label
    """,
)
_COUNT = Statement(
    "doctor_keys",
    """
    SELECT mode, count(*) FROM api_keys
    WHERE revoked_at IS NULL AND coalesce(expires_at > now(), true) GROUP BY mode
    """,
)
_TOUCH = Statement(
    "key_touch",
    # A write once a minute is enough to show which key is in use, and avoids a hot row.
    """
    UPDATE api_keys SET last_used_at = now()
    WHERE key_id = %(key_id)s::text
      AND coalesce(last_used_at < now() - interval '1 minute', true)
    RETURNING 1
    """,
)


class KeyStore:
    """API keys in PostgreSQL."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def find(self, key_id: str, deadline: Deadline) -> ApiKey | None:
        """The key with this public id, whether or not it is still live."""
        rows = self._pool.run(_FIND, {"key_id": key_id}, deadline)
        return _key_of(rows[0]) if rows else None

    def create(
        self,
        merchant_id: UUID,
        deadline: Deadline,
        *,
        mode: Mode,
        scopes: Sequence[str],
        label: str | None = None,
        expires_at: datetime | None = None,
        actor: Actor = audit.SERVICE,
    ) -> tuple[ApiKey, str]:
        """Create a key: (its row, the key itself, which can never be read again).

        Raises WrongState where the merchant has LIVE_KEYS_MAX live ones already.
        """
        api_key = generate_key(mode)
        parsed = parse_key(api_key)
        assert parsed is not None  # noqa: S101  # It was just made.
        rows = audit.run_audited(
            self._pool,
            _CREATE,
            {
                "key_id": parsed[1],
                "merchant_id": merchant_id,
                "secret_sha256": hash_key(api_key),
                "mode": mode,
                "scopes": [scope for scope in scopes if scope != PLATFORM],
                "platform": PLATFORM in scopes,
                "label": label,
                "expires_at": expires_at,
                "most": LIVE_KEYS_MAX,
            },
            deadline,
            actor=actor,
            entry=lambda _: Entry(
                "api_key.created",
                merchant_id,
                target=parsed[1],
                detail={
                    "mode": mode,
                    "scopes": sorted(scopes),
                    "label": label,
                    "expires_at": expires_at,
                },
            ),
        )
        if not rows:
            raise WrongState(f"There are {LIVE_KEYS_MAX} live keys already; revoke one first.")
        return _key_of(rows[0]), api_key

    def of_merchant(self, merchant_id: UUID, deadline: Deadline) -> list[ApiKey]:
        """The merchant's newest 100 keys, with revoked ones."""
        rows = self._pool.run(_LIST, {"merchant_id": merchant_id}, deadline)
        return [_key_of(row) for row in rows]

    def revoke(
        self,
        merchant_id: UUID,
        key_id: str,
        deadline: Deadline,
        *,
        actor: Actor = audit.SERVICE,
    ) -> bool:
        """Revoke a key; workers notice it after the time of their key cache."""
        rows = audit.run_audited(
            self._pool,
            _REVOKE,
            {"merchant_id": merchant_id, "key_id": key_id},
            deadline,
            actor=actor,
            entry=lambda rows: Entry(
                "api_key.revoked", merchant_id, target=key_id, detail={"label": rows[0][0]}
            ),
        )
        return bool(rows)

    def live_by_mode(self, deadline: Deadline) -> dict[str, int]:
        """The number of valid keys of all merchants, by mode."""
        return dict(self._pool.run(_COUNT, {}, deadline))

    def touch(self, key_id: str, deadline: Deadline) -> None:
        """Record the use of the key, at most once a minute."""
        self._pool.run(_TOUCH, {"key_id": key_id}, deadline)


def _key_of(row: Sequence[Any]) -> ApiKey:
    key_id, merchant_id, secret_sha256, mode, scopes, is_platform, *rest = row
    # Only the column grants the platform scope, never an entry of the scope list.
    held = frozenset(scopes) - {PLATFORM} | ({PLATFORM} if is_platform else frozenset())
    return ApiKey(key_id, merchant_id, bytes(secret_sha256), mode, held, *rest)


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    """CRC-32 in six base-62 digits: detects a mistyped key without a query."""
    number = binascii.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
