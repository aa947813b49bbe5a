"""Webhook deliveries: stored with the event or not at all, signed, repeated until accepted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg2
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from service.database.direct import cursor_to
from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy, WrongState
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.model import Payment, Status
from service.payments.charge.store import PaymentStore
from service.payments.events.deliveries import PAUSE_AFTER_FAILURES, Deliverer
from service.payments.events.endpoints import ENDPOINTS_MAX, EndpointStore
from service.providers.http.webhook_sender import WebhookSender
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.charge_requests import charge_request
from tests.support.processes.webhook_receiver import Receiver, webhook_receiver
from tests.support.providers.booked_provider import BookedProvider, declined, unknown
from tests.support.stack import moving
from tests.support.stack.running_stack import wait_for

MERCHANT = uuid4()
_ALL_DUE = Statement(
    "all_due", "UPDATE webhook_outbox SET due_at = now() WHERE due_at < 'infinity' RETURNING 1"
)
_OUTBOX = Statement("outbox", "SELECT type, tries, due_at FROM webhook_outbox ORDER BY event_id")
_PAUSED_EVENTS = Statement(
    "paused_events", "SELECT detail FROM events WHERE type = 'webhook_endpoint.paused'"
)


def soon() -> Deadline:
    return Deadline.after(60)


class Merchant:
    """One merchant's payments and endpoints, with a scripted provider."""

    def __init__(self, pool: ConnectionPool, **options: object) -> None:
        self.pool = pool
        self.provider = BookedProvider()
        self.endpoints = EndpointStore(pool)
        self.store = PaymentStore(pool, lease_s=10, queue_expires_s=3600)
        handler = PaymentHandler(self.store, self.provider, provider_timeout_s=5)
        self._process = handler.process_payment
        sender = WebhookSender(watchdog=Watchdog(), allow_private=True)
        self.deliverer = Deliverer(pool, sender, timeout_s=10.0, **options)

    def hears_at(self, url: str, *event_types: str) -> tuple[UUID, str]:
        endpoint, secret = self.endpoints.create(
            MERCHANT, soon(), url=url, event_types=event_types or ("*",)
        )
        return endpoint.endpoint_id, secret

    def pay(self, *outcomes: object) -> Payment:
        self.provider.confirm_with(*outcomes)
        return self._process(charge_request(MERCHANT, reference="order-7"), soon())[0]

    def deliver(self, *, failing: bool = False) -> int:
        self.pool.run(_ALL_DUE, {}, soon())
        return self.deliverer.deliver(
            10, lambda call, due: [call(delivery) for delivery in due], soon(), failing=failing
        )

    def outbox(self) -> list[tuple[str, int, datetime | None]]:
        return self.pool.run(_OUTBOX, {}, soon())

    def endpoint(self, endpoint_id: UUID):
        return self.endpoints.get(MERCHANT, endpoint_id, soon())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as receiver:
        yield receiver


@pytest.fixture
def merchant(pool: ConnectionPool) -> Merchant:
    return Merchant(pool)


def test_an_independent_library_verifies_what_is_delivered(merchant, receiver):
    _, secret = merchant.hears_at(receiver.url)
    payment = merchant.pay()

    assert merchant.deliver() == 1

    headers, body = receiver.got[0]
    told = Webhook(secret).verify(body, headers)
    assert headers[":line"] == "POST /hooks?merchant=7 HTTP/1.1"
    assert told["id"] == headers["webhook-id"]
    assert (told["type"], told["data"]["payment_id"]) == ("payment.succeeded", payment.id)
    assert (told["data"]["amount_captured"], told["data"]["reference"]) == (2599, "order-7")
    assert merchant.outbox() == []


def test_a_changed_body_or_another_secret_is_not_verified(merchant, receiver):
    _, secret = merchant.hears_at(receiver.url)
    _, of_another = merchant.hears_at("http://127.0.0.1:9/")
    merchant.pay()
    merchant.deliver()
    headers, body = receiver.got[0]

    for key, content in ((of_another, body), (secret, body.replace(b"2599", b"9999"))):
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(content, headers)


def test_while_a_secret_is_replaced_both_verify(merchant, receiver):
    endpoint_id, old = merchant.hears_at(receiver.url)
    rotated = merchant.endpoints.rotate(MERCHANT, endpoint_id, soon())
    assert rotated is not None
    merchant.pay()
    merchant.deliver()

    headers, body = receiver.got[0]
    for secret in (old, rotated[1]):
        assert Webhook(secret).verify(body, headers)["type"] == "payment.succeeded"


def test_merchants_get_outcomes_and_not_each_step(merchant, receiver):
    merchant.hears_at(receiver.url)
    merchant.pay()
    merchant.pay(declined())
    doubtful = merchant.pay(unknown())
    merchant.store.resolve(doubtful, Status.DECLINED, "seen in the books", "key", soon())

    merchant.deliver()

    assert sorted(receiver.types) == [
        *("payment.declined", "payment.declined", "payment.succeeded", "payment.unknown")
    ]


def test_endpoint_gets_only_its_merchants_chosen_events(merchant, receiver):
    merchant.hears_at(receiver.url, "payment.declined")
    merchant.endpoints.create(uuid4(), soon(), url=receiver.url, event_types=["*"])
    merchant.pay()
    merchant.pay(declined())

    merchant.deliver()

    assert receiver.types == ["payment.declined"]


def test_refused_delivery_repeats_with_its_id_until_accepted(merchant, receiver):
    endpoint_id, _ = merchant.hears_at(receiver.url)
    merchant.pay()
    receiver.statuses = [500, 302, 204]

    merchant.deliver()
    assert merchant.endpoint(endpoint_id).last_error == "status 500"
    merchant.deliver(failing=True)
    assert merchant.endpoint(endpoint_id).last_error == "status 302"
    merchant.deliver(failing=True)

    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len(receiver.got) == 3
    assert (merchant.endpoint(endpoint_id).failures, merchant.outbox()) == (0, [])


@pytest.mark.parametrize(("status", "seconds"), [(429, 7000), (503, 7000), (500, 1)])
def test_receiver_that_asks_for_patience_is_given_it(pool, receiver, status, seconds):
    merchant = Merchant(pool, pauses_s=[1.0, 1.0])
    merchant.hears_at(receiver.url)
    merchant.pay()
    receiver.statuses, receiver.more = [status], "Retry-After: 7000\r\n"
    before = datetime.now(UTC)

    merchant.deliver()

    ((_, tries, due_at),) = merchant.outbox()
    assert tries == 1
    assert due_at is not None
    assert abs((due_at - before).total_seconds() - seconds) < 60


def test_patience_covers_all_waiting_events_of_the_endpoint(pool, receiver):
    merchant = Merchant(pool, pauses_s=[1.0, 1.0])
    merchant.hears_at(receiver.url)
    for _ in range(3):
        merchant.pay()
    receiver.statuses, receiver.more = [503] * 9, "Retry-After: 7000\r\n"
    pool.run(_ALL_DUE, {}, soon())

    merchant.deliverer.deliver(
        1, lambda call, due: [call(each) for each in due], soon(), failing=False
    )

    hour = timedelta(hours=1)
    assert [due_at - datetime.now(UTC) > hour for *_, due_at in merchant.outbox()] == [True] * 3
    assert len(receiver.got) == 1


def test_delivery_is_given_up_and_can_be_requested_again(pool, receiver):
    merchant = Merchant(pool, pauses_s=[1.0])
    endpoint_id, _ = merchant.hears_at(receiver.url)
    merchant.pay()
    receiver.statuses = [500, 500]
    merchant.deliver()
    merchant.deliver(failing=True)
    ((_, tries, due_at),) = merchant.outbox()
    assert (tries, due_at, merchant.endpoint(endpoint_id).given_up) == (2, None, 1)

    event_id = UUID(receiver.body()["id"].removeprefix("evt_"))
    again = merchant.endpoints.redeliver(MERCHANT, event_id, soon())
    merchant.deliver(failing=True)

    assert again == ("payment.succeeded", [endpoint_id])
    assert (len(receiver.got), merchant.outbox()) == (3, [])


def test_another_merchants_event_cannot_be_asked_for(merchant, receiver):
    merchant.hears_at(receiver.url)
    merchant.pay()
    merchant.deliver()

    event_id = UUID(receiver.body()["id"].removeprefix("evt_"))
    assert merchant.endpoints.redeliver(uuid4(), event_id, soon()) is None


def test_an_endpoint_that_keeps_failing_is_paused_and_says_so(pool, receiver, caplog):
    merchant = Merchant(pool, pause_after_s=0.0)
    endpoint_id, _ = merchant.hears_at(receiver.url)
    merchant.pay()
    receiver.statuses = [503] * PAUSE_AFTER_FAILURES

    merchant.deliver()
    for _ in range(PAUSE_AFTER_FAILURES - 1):
        pool.run(_SET_TRIES, {}, soon())
        merchant.deliver(failing=True)

    endpoint = merchant.endpoint(endpoint_id)
    assert (endpoint.status, endpoint.paused_reason) == ("paused", "failing")
    ((detail,),) = pool.run(_PAUSED_EVENTS, {}, soon())
    assert (detail["reason"], detail["last_error"]) == ("failing", "status 503")
    assert "webhook_endpoint.paused" in caplog.messages
    assert merchant.deliver(failing=True) == 0


_SET_TRIES = Statement("set_tries", "UPDATE webhook_outbox SET tries = 0 RETURNING 1")


def test_paused_endpoint_gets_its_events_when_enabled(merchant, receiver):
    endpoint_id, _ = merchant.hears_at(receiver.url)
    merchant.endpoints.change(MERCHANT, endpoint_id, soon(), status="paused")
    merchant.pay()
    merchant.deliverer.tidy(soon())
    assert (merchant.deliver(), merchant.endpoint(endpoint_id).pending) == (0, 1)

    merchant.endpoints.change(MERCHANT, endpoint_id, soon(), status="enabled")
    merchant.deliverer.tidy(soon())
    merchant.deliver()

    assert receiver.types == ["payment.succeeded"]


def test_a_receiver_that_says_gone_is_not_called_again(merchant, receiver):
    endpoint_id, _ = merchant.hears_at(receiver.url)
    merchant.pay()
    receiver.statuses = [410]

    merchant.deliver()

    assert merchant.endpoint(endpoint_id).paused_reason == "gone"


def test_an_endpoint_that_fails_holds_nobody_else_up(merchant, receiver):
    dead, _ = merchant.hears_at("http://127.0.0.1:9/")
    merchant.hears_at(receiver.url)
    merchant.pay()
    merchant.deliver()
    assert merchant.endpoint(dead).last_error == "refused"

    merchant.pay()

    assert merchant.deliver(failing=False) == 1
    assert merchant.deliver(failing=True) == 1
    assert len(receiver.got) == 2
    assert merchant.endpoint(dead).pending == 2


def test_a_delivery_is_leased_to_one_deliverer(merchant, receiver):
    merchant.hears_at(receiver.url)
    merchant.pay()
    others: list[int] = []

    def ask_again_meanwhile(call: Callable[..., bool], due: list) -> list[bool]:
        others.append(merchant.deliverer.deliver(10, lambda call, due: [], soon(), failing=False))
        return [call(delivery) for delivery in due]

    merchant.deliverer.deliver(10, ask_again_meanwhile, soon(), failing=False)

    assert (others, len(receiver.got)) == ([0], 1)


def test_who_comes_second_to_a_delivery_finds_it_taken(merchant, receiver, database_url):
    merchant.hears_at(receiver.url)
    merchant.pay()
    first = psycopg2.connect(database_url)
    with first.cursor() as cursor, ThreadPoolExecutor(1) as executor:
        cursor.execute(
            "UPDATE webhook_outbox SET fence = fence + 1, due_at = now() + interval '10 s'"
        )

        # It has seen the row as due, and waits for the one who is changing it.
        second = executor.submit(
            merchant.deliverer.deliver, 10, lambda call, due: [], soon(), failing=False
        )
        wait_for(lambda: _is_blocked(merchant))
        first.commit()

        assert second.result(60) == 0
    first.close()


def _is_blocked(merchant: Merchant) -> bool:
    return bool(merchant.pool.run(_BLOCKED, {}, soon()))


_BLOCKED = Statement(
    "blocked",
    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    " AND datname = current_database()",
)


def test_who_lost_the_lease_writes_nothing(merchant, receiver):
    merchant.hears_at(receiver.url)
    merchant.pay()
    receiver.statuses = [500, 500]
    late: list[Callable[[], bool]] = []

    # The first takes so long that its lease ends, and another tries.
    merchant.deliverer.deliver(
        1, lambda call, due: late.append(lambda: call(due[0])) or [], soon(), failing=False
    )
    merchant.deliver()
    late[0]()

    ((_, tries, _),) = merchant.outbox()
    assert (len(receiver.got), tries) == (2, 1)


def test_refund_and_captured_payment_are_delivered_too(pool, receiver):
    EndpointStore(pool).create(moving.MERCHANT, soon(), url=receiver.url, event_types=["*"])
    parts = moving.Moving(pool, BookedProvider())
    merchant = Merchant(pool)

    payment = parts.pay()
    parts.refund(payment, 500)
    merchant.deliver()

    assert sorted(receiver.types) == ["payment.succeeded", "refund.succeeded"]
    refunded = [json.loads(body)["data"]["amount_refunded"] for _, body in receiver.got]
    assert refunded == [500, 500]


def test_a_deleted_endpoint_hears_nothing_more(merchant, receiver):
    endpoint_id, _ = merchant.hears_at(receiver.url)
    merchant.pay()

    assert not merchant.endpoints.delete(uuid4(), endpoint_id, soon())
    assert merchant.endpoints.delete(MERCHANT, endpoint_id, soon())

    assert (merchant.deliver(), merchant.outbox()) == (0, [])


def test_a_merchant_has_a_bounded_number_of_endpoints(merchant):
    for _ in range(ENDPOINTS_MAX):
        merchant.hears_at("http://127.0.0.1:9/")

    with pytest.raises(WrongState):
        merchant.hears_at("http://127.0.0.1:9/")


def test_endpoint_with_many_waiting_events_can_be_deleted(merchant, database_url, monkeypatch):
    monkeypatch.setattr("service.payments.events.endpoints.UNSENT_AT_ONCE", 100)
    endpoint_id, _ = merchant.hears_at("https://example.com/hooks")
    with cursor_to(database_url) as cursor:
        cursor.execute(
            "INSERT INTO webhook_outbox (merchant_id, endpoint_id, event_id, type, event_at)"
            " SELECT %s, %s, lpad(to_hex(n), 32, '0')::uuid, 'payment.succeeded', now()"
            " FROM generate_series(1, 1000) AS n",
            (str(MERCHANT), str(endpoint_id)),
        )
        cursor.execute(
            "BEGIN; SELECT 1 FROM webhook_outbox ORDER BY event_id DESC LIMIT 1 FOR UPDATE"
        )

        # The time ends before the last row can be removed: what was removed stays so.
        with pytest.raises(Busy):
            merchant.endpoints.delete(MERCHANT, endpoint_id, Deadline.after(5))
        assert 0 < len(merchant.outbox()) < 1000
        assert merchant.endpoint(endpoint_id) is not None
        cursor.execute("ROLLBACK")

    assert merchant.endpoints.delete(MERCHANT, endpoint_id, soon())
    assert merchant.outbox() == []
    assert merchant.endpoint(endpoint_id) is None
