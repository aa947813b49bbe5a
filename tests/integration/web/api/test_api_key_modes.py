"""An API key's mode fits the provider's: no test key moves real money, and the reverse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from uuid import UUID

import pytest

from service.app.data_plane import (
    create_app,
)
from service.app.ops_plane import (
    create_ops_app,
)
from service.payments.merchants import KeyStore
from service.resilience.deadline import Deadline
from service.settings import Settings
from tests.integration.web.api.conftest import PAYMENT
from tests.support.providers.booked_provider import BookedProvider
from tests.support.stack.pools import open_pool_of


@pytest.mark.parametrize("kind", ["sk", "rk"])
@pytest.mark.parametrize("mode", ["test", "live"])
def test_a_key_of_the_other_mode_moves_no_money(
    settings: Settings, make_key: Callable[..., str], merchant_id: UUID, mode: str, kind: str
) -> None:
    make_key(merchant_id)  # The merchant.
    with open_pool_of(1, settings.database_url or "") as pool:
        keys = {
            of: KeyStore(pool).create(merchant_id, Deadline.after(60), mode=of, scopes=["payments"])
            for of in ("test", "live")
        }
    ours, provider = (
        dataclasses.replace(settings, stripe_api_key=f"{kind}_{mode}_hush"),
        BookedProvider(),
    )
    client = create_app(ours, provider=provider).test_client()
    other = {"test": "live", "live": "test"}[mode]

    def pay(of: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {keys[of][1]}", "Idempotency-Key": f"order-{of}"}
        answer = client.post("/v1/payments", json=PAYMENT, headers=headers)
        return answer.status_code, answer.text

    # Twice: what is remembered of a key is refused as well.
    refused = [pay(other), pay(other)]
    assert [status for status, _ in refused] == [403, 403]
    assert all(f"hf_{mode}_" in text and "hush" not in text for _, text in refused)
    assert provider.calls == []
    assert pay(mode)[0] == 201


def test_the_ops_plane_refuses_it_as_well(
    settings: Settings, make_key: Callable[..., str], merchant_id: UUID
) -> None:
    ours = dataclasses.replace(
        settings, stripe_api_key="sk_live_x", stripe_api_base="https://127.0.0.1:1"
    )
    headers = {"Authorization": f"Bearer {make_key(merchant_id)}"}

    answer = create_ops_app(ours).test_client().get("/console/payments", headers=headers)

    assert answer.status_code == 403
    assert "real money" in answer.text
