"""The provider's keys: the same for the same call, and for nothing else."""

from __future__ import annotations

from uuid import UUID

from service.payments.charge.provider_keys import key_digest, provider_key

MERCHANT = UUID(int=1)
OTHER = UUID(int=2)


def test_the_same_call_has_the_same_provider_key():
    assert key_digest(MERCHANT, "k", "payment") == key_digest(MERCHANT, "k", "payment")


def test_each_merchant_key_and_operation_has_its_own_digest():
    digests = {
        key_digest(merchant, key, operation)
        for merchant in (MERCHANT, OTHER)
        for key in ("k", "k2", "2k")
        for operation in ("payment", "refund", "capture")
    }

    assert len(digests) == 18


def test_a_provider_key_shows_nothing_of_the_clients_key():
    assert "secret" not in provider_key(key_digest(MERCHANT, "secret", "payment"), 1)


def test_a_provider_key_fits_beside_what_an_operation_appends():
    # Stripe takes 255 characters.
    assert len(provider_key(key_digest(MERCHANT, "k" * 255, "payment"), 10**6)) < 200
