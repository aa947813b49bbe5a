"""The history is permanent: the serving role may add to it and never change it."""

from __future__ import annotations

import psycopg2
import pytest


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET type = 'payment.never_happened'",
        "DELETE FROM events",
        "TRUNCATE events",
        "DROP TABLE events",
        "ALTER TABLE events DISABLE ROW LEVEL SECURITY",
        "DELETE FROM payments",
    ],
)
def test_the_serving_role_cannot_rewrite_history(database_url, statement):
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
    finally:
        connection.close()
