"""The shipped data plane, with a scripted provider.

One database and one application for each module, because both are slow to start; each test is a
separate merchant, so that it sees no data of the others.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.app.data_plane import (
    create_app,
)
from service.lab.local.embedded import OWNER, EmbeddedPostgres
from service.payments.merchants import PLATFORM, SCOPES, generate_key, hash_key, parse_key
from service.providers.base import Outcome
from service.settings import Settings
from tests.support.providers.booked_provider import BookedProvider

PAYMENT = {"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"}
WEBHOOK_SECRET = "whsec_of_the_tests"

Connection = psycopg2.extensions.connection
_numbers = itertools.count(1)


def connect(url: str) -> Connection:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


@pytest.fixture(scope="module")
def database_name(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"api_{os.getpid()}_{next(_numbers)}"
    server = connect(postgres.url(OWNER, "postgres"))
    with server.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
        yield name
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.close()


@pytest.fixture(scope="module")
def settings(
    postgres: EmbeddedPostgres, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings(
        database_url=postgres.url("holdfast", database_name),
        home=home,
        metrics_dir=home,
        stripe_webhook_secret=WEBHOOK_SECRET,
    )


@pytest.fixture(scope="module")
def module_provider() -> BookedProvider:
    return BookedProvider()


@pytest.fixture(scope="module")
def app(settings: Settings, module_provider: BookedProvider) -> Flask:
    return create_app(settings, provider=module_provider)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Calls from an address of this test alone: one address brings few new keys a second."""
    client = app.test_client()
    number = next(_numbers)
    client.environ_base["REMOTE_ADDR"] = f"127.1.{number // 256}.{number % 256}"
    return client


@pytest.fixture
def confirms() -> tuple[Outcome, ...]:
    """The results of the provider's first confirms; a test overrides it by a parameter."""
    return ()


@pytest.fixture
def provider(
    module_provider: BookedProvider, confirms: tuple[Outcome, ...]
) -> Iterator[BookedProvider]:
    module_provider.calls.clear()
    module_provider.confirm_with(*confirms)
    yield module_provider
    module_provider.during_call = lambda: None


@pytest.fixture(scope="module")
def owner(postgres: EmbeddedPostgres, database_name: str) -> Iterator[Connection]:
    """Looks at the tables past the service."""
    connection = connect(postgres.url(OWNER, database_name))
    yield connection
    connection.close()


@pytest.fixture
def merchant_id(owner: Connection) -> UUID:
    return uuid4()


@pytest.fixture
def make_key(owner: Connection) -> Callable[..., str]:
    """An API key of a merchant; `expires_in_s` may be past, None is never."""

    def make_key(
        merchant_id: UUID, *, scopes: tuple[str, ...] = SCOPES, expires_in_s: float | None = None
    ) -> str:
        api_key = generate_key("test")
        parsed = parse_key(api_key)
        assert parsed is not None
        with owner.cursor() as cursor:
            cursor.execute(
                "INSERT INTO merchants (merchant_id, name) VALUES (%s, 'test')"
                " ON CONFLICT DO NOTHING",
                (str(merchant_id),),
            )
            cursor.execute(
                "INSERT INTO api_keys"
                " (key_id, merchant_id, secret_sha256, mode, scopes, platform, expires_at)"
                " VALUES (%s, %s, %s, 'test', %s, %s, now() + %s * interval '1 second')",
                (
                    parsed[1],
                    str(merchant_id),
                    hash_key(api_key),
                    [scope for scope in scopes if scope != PLATFORM],
                    PLATFORM in scopes,
                    expires_in_s,
                ),
            )
        return api_key

    return make_key


@pytest.fixture
def api_key(merchant_id: UUID, make_key: Callable[..., str]) -> str:
    """A key with all scopes."""
    return make_key(merchant_id)


@pytest.fixture
def count(owner: Connection, merchant_id: UUID) -> Callable[[str], int]:
    """The number of the merchant's rows in a table."""

    def count(table: str) -> int:
        with owner.cursor() as cursor:
            cursor.execute(
                f"SELECT count(*) FROM {table} WHERE merchant_id = %s",  # noqa: S608
                (str(merchant_id),),
            )
            return int(cursor.fetchone()[0])

    return count


@pytest.fixture
def pay(client: FlaskClient, api_key: str, provider: BookedProvider) -> Callable[..., TestResponse]:
    """POST /v1/payments; fields may be changed, headers added."""

    def pay(
        key: str = "order-1", *, headers: dict[str, str] | None = None, **fields: Any
    ) -> TestResponse:
        return client.post(
            "/v1/payments",
            json={**PAYMENT, **fields},
            headers={
                "Authorization": f"Bearer {api_key}",
                "Idempotency-Key": key,
                **(headers or {}),
            },
        )

    return pay


@pytest.fixture
def get(client: FlaskClient, api_key: str) -> Callable[..., TestResponse]:
    def get(path: str, **headers: str) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get(path, headers={"Authorization": f"Bearer {api_key}", **named})

    return get
