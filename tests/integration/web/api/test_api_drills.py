"""Payments of a rehearsal on the serving workers: counted as answers, in no service level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
from werkzeug.test import TestResponse

from service.payments.merchants import DRILL_MERCHANT_ID

ANSWERED = {"route": "/v1/payments", "method": "POST", "status": "201"}


@pytest.fixture
def merchant_id() -> UUID:
    return DRILL_MERCHANT_ID


def counted(name: str, **labels: Any) -> float:
    return REGISTRY.get_sample_value(f"holdfast_{name}", labels) or 0.0


def test_a_rehearsals_payment_is_outside_the_service_levels(pay: Callable[..., TestResponse]):
    answered, good = counted("http_requests_total", **ANSWERED), counted("payments_good_total")

    assert pay("order-1").status_code == 201

    assert counted("http_requests_total", **ANSWERED) == answered + 1
    assert counted("payments_good_total") == good
