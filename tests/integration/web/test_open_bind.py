"""The data plane refuses to bind a non-loopback address before an API key exists."""

from __future__ import annotations

import dataclasses

import pytest

from service.database.direct import connection_to
from service.payments.merchants import bootstrap, generate_key
from service.settings import Settings, SettingsError
from service.startup.database import require_api_key

OPEN = "0.0.0.0:8080"


def test_open_bind_without_a_key_is_refused_with_the_remedy(database_url):
    settings = Settings(database_url=database_url, bind=OPEN)

    with pytest.raises(SettingsError, match="HOLDFAST_BOOTSTRAP_API_KEY"):
        require_api_key(settings)


def test_before_the_first_migration_there_is_no_key_either(postgres):
    with pytest.raises(SettingsError, match="no API key"):
        require_api_key(Settings(database_url=postgres.url("holdfast", "postgres"), bind=OPEN))


def test_with_a_key_or_on_loopback_it_may(database_url, owner_url):
    settings = Settings(database_url=database_url, bind=OPEN)
    require_api_key(dataclasses.replace(settings, bind="127.0.0.1:8080"))

    with connection_to(owner_url) as connection:
        bootstrap(connection, generate_key("test"), "test")

    require_api_key(settings)
