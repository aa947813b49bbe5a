"""Every value of the service's SQL has a cast: PostgreSQL then prepares it with that type."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import service.payments
from service.database.pool.statements import Statement

# psycopg2 writes a list of ids as an array of texts, and a text without a type may fit two operators.
WITHOUT_CAST = re.compile(r"%(?:\(\w+\))?s(?!::\w)")


def statements() -> Iterator[Statement]:
    """All statements at the top level of the modules about payments, also within tables of them."""
    for module in pkgutil.walk_packages(service.payments.__path__, "service.payments."):
        for value in vars(importlib.import_module(module.name)).values():
            many = value.values() if isinstance(value, dict) else [value]
            yield from (one for one in many if isinstance(one, Statement))


def test_every_value_of_a_statement_has_a_cast() -> None:
    found = {statement.name: statement.sql for statement in statements()}

    assert len(found) > 100
    assert {name for name, sql in found.items() if WITHOUT_CAST.search(sql)} == set()
