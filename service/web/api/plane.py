"""The parts of the data plane that its views use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.payments.charge.handler import PaymentHandler
from service.payments.charge.store import PaymentStore
from service.payments.events.endpoints import EndpointStore
from service.payments.events.feed import EventFeed
from service.payments.merchants import KeyStore
from service.payments.movements.handler import MovementHandler
from service.payments.movements.store import MovementStore
from service.payments.settling.inbox import WebhookInbox
from service.payments.settling.late_store import LateStore
from service.web.http.auth import Authenticator
from service.web.http.parts import parts_of
from service.web.http.preferences import Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """Built once for each application; its views read it from the application that serves them."""

    authenticate: Authenticator
    handler: PaymentHandler
    store: PaymentStore
    waiting: Waiting
    late: LateStore
    movement_handler: MovementHandler
    movements: MovementStore
    feed: EventFeed
    keys: KeyStore
    endpoints: EndpointStore
    # The reason why a webhook's address is never called, as far as its text shows, or None.
    refusal_of: Callable[[str], str | None]
    inbox: WebhookInbox
    # Without a secret every webhook is refused.
    stripe_secrets: Sequence[str] = field(repr=False)


def data_plane() -> DataPlane:
    """The parts of the application that serves the current request."""
    return parts_of(DataPlane)
