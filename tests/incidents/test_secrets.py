"""A canary in every secret setting: whatever the service emits is searched for them."""

from __future__ import annotations

import requests

from service.payments.merchants import generate_key
from tests.running_house import House, running_house

CANARIES = {
    "STRIPE_API_KEY": "sk_test_canary7f3a91c2",
    "STRIPE_WEBHOOK_SECRET": "whsec_canary55b0e4d8",
}
CARD = "4242424242424242"


def test_no_secret_and_no_card_number_leaves_the_service(tmp_path):
    api_key = generate_key("test")
    canaries = [*CANARIES.values(), api_key, CARD]
    home = tmp_path / "house"
    with running_house(home, HOLDFAST_BOOTSTRAP_API_KEY=api_key, **CANARIES) as house:
        emitted = [answer.text for answer in _provoke(house)]
        pages = ("/metrics", "/diagnostics/health", "/diagnostics/statistics", "/")
        emitted += [requests.get(house.ops_url + page, timeout=10).text for page in pages]
    # After the stop, so that its last words are read too.
    logs = [*(home / "logs").glob("*.log"), home / "run.out"]
    emitted += [log.read_text(errors="replace") for log in logs]

    assert len(emitted) > 20
    assert [canary for canary in canaries if any(canary in text for text in emitted)] == []


def test_no_card_number_is_stored_either(tmp_path):
    home = tmp_path / "house"
    with running_house(home) as house:
        paid = house.pay(reference="to-be-found").json()
        _provoke(house)
        # The write-ahead log holds all that was ever written, whatever became of it.
        files = (home / "postgres").resolve().rglob("pg_wal/*")
        written = b"".join(path.read_bytes() for path in files if path.is_file())

    assert paid["reference"].encode() in written
    assert CARD.encode() not in written


def _provoke(house: House) -> list[requests.Response]:
    """Calls that fail in as many ways as there are places where a value could be repeated."""
    house.control({"error_500_saved": 1})
    answers = [house.pay(), house.pay(reference="same"), house.get("/v1/payments")]
    house.control({"garbage": 1})
    answers.append(house.pay())
    house.control({"ok": 1})
    bearer = {"Authorization": f"Bearer {house.api_key}x"}
    for body in (
        {"payment_method": CARD},
        {"reference": CARD},
        {"metadata": {CARD: "x"}},
        {"metadata": {"card": f"4242-4242-4242-4242 {CARD}"}},
        {CARD: "unknown field"},
        {"amount": int(CARD)},
    ):
        answers.append(house.pay(**body))
        assert answers[-1].status_code == 422
    answers.append(house.pay(key=CARD))
    answers.append(house.pay(headers=bearer))
    answers.append(house.get(f"/v1/payments?reference={CARD}"))
    answers.append(house.get(f"/v1/payments/{CARD}"))
    answers.append(house.request("POST", "/v1/webhooks/stripe", data=CARD))
    answers.append(
        house.request("POST", "/v1/payments", data=f'{{"amount": "{CARD}', headers=bearer)
    )
    return answers
