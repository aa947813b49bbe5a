"""The data plane after an outage, on a host where no reconciler probes the provider for it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from werkzeug.test import TestResponse

from tests.support.providers.booked_provider import BookedProvider
from tests.support.providers.fakes import TIMED_OUT
from tests.support.stack.running_stack import wait_for


@pytest.mark.parametrize("confirms", [(TIMED_OUT,) * 30])
def test_payments_go_out_again_soon_after_the_provider_is_back(
    pay: Callable[..., TestResponse], provider: BookedProvider
):
    wait_for(lambda: pay(str(uuid4())).json["status"] == "queued")
    # The breaker is open. From now on the provider is well.
    provider.confirm_with()

    wait_for(lambda: pay(str(uuid4())).status_code == 201)
