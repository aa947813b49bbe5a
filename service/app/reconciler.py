"""The reconciler: look-ups, the queue, the sweep and the figures in one process."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from service.app.background import LATE_AT_ONCE, Background
from service.app.parts import (
    build_parts,
    send_spans,
)
from service.database.direct import DatabaseError, Unreachable
from service.observability.metrics import preregister
from service.payments.charge.open_limit import OpenLimit
from service.payments.charge.store import RECORD_TIMEOUT_S
from service.payments.events.deliveries import Deliverer
from service.payments.modes import ModeConflict, claim_mode
from service.payments.retention import Kept, Retention
from service.payments.settling.figures import OpenFigures
from service.payments.settling.forward import Forwarder
from service.payments.settling.inbox import WebhookInbox
from service.payments.settling.invariant_checks import InvariantChecks
from service.payments.settling.late import LateFacts
from service.payments.settling.late_store import LateStore
from service.payments.settling.movement_reconcile import MovementReconciler
from service.payments.settling.orphans import OrphanStore
from service.payments.settling.reconcile import Reconciler
from service.payments.settling.recovery import Recovery
from service.payments.settling.run_locks import RunLocks
from service.payments.settling.sweep import Sweep
from service.payments.settling.sweep_compare import Comparison
from service.payments.settling.sweep_progress import SweepRuns
from service.payments.settling.sweep_unread import UnreadStore
from service.providers.http.webhook_sender import WebhookSender
from service.settings import Settings, SettingsError
from service.startup.database import RECONCILER_POOL_SIZE

# Threads of each loop; each thread sends the database one statement at a time.
RECONCILER_THREADS = 8
MODE_AGAIN_S = 0.5

log = logging.getLogger(__name__)


def create_background(settings: Settings) -> Background:
    """The reconciler: look-ups, the queue, the sweep and the figures, each on its schedule."""
    send_spans(settings)
    # One thread of each loop may wait for the provider; the sweep adds one, late facts add a few.
    parts = build_parts(
        settings,
        pool_size=RECONCILER_POOL_SIZE,
        threads=3 * RECONCILER_THREADS + 1 + LATE_AT_ONCE,
    )
    preregister.begin_settling()
    reconciler = Reconciler(parts.store, parts.leases, parts.handler, parts.provider)
    recovery = Recovery(parts.pool, parts.provider.name)
    # A queued payment may wait, but its lease limits the work: a call, then its record.
    send_timeout_s = settings.provider_timeout_ms / 1000 + RECORD_TIMEOUT_S
    lease_s = settings.provider_timeout_ms / 1000 + 2 * RECORD_TIMEOUT_S
    # A check makes four calls, each within the provider's deadline.
    late_store = LateStore(parts.pool, lease_s=4 * lease_s, provider=parts.provider.name)
    orphans = OrphanStore(parts.pool)
    locks = RunLocks(parts.pool)
    late = LateFacts(parts.store, late_store, parts.movements, orphans, parts.provider)
    runs = SweepRuns(parts.pool, parts.provider.name)
    unread = UnreadStore(parts.pool, parts.provider.name)
    return Background(
        pool=parts.pool,
        leases=parts.leases,
        inbox=WebhookInbox(parts.pool),
        locks=locks,
        reconciler=reconciler,
        forwarder=Forwarder(
            parts.store,
            parts.leases,
            orphans,
            parts.handler,
            parts.provider,
            unread,
            send_timeout_s=send_timeout_s,
            batch_max=RECONCILER_THREADS,
            is_recovering=recovery.is_recovering,
        ),
        movements=parts.movements,
        movement_reconciler=MovementReconciler(
            parts.movements, parts.movement_handler, parts.provider
        ),
        deliverer=Deliverer(
            parts.pool,
            WebhookSender(
                watchdog=parts.pool.watchdog,
                allow_private=settings.webhook_allow_private,
                ca_file=settings.webhook_ca_file,
            ),
            timeout_s=settings.webhook_timeout_ms / 1000,
        ),
        open_limit=OpenLimit(parts.pool, most=settings.open_payments_max),
        retention=Retention(
            parts.pool,
            locks,
            Kept(
                inbox_days=settings.keep_inbox_days,
                outbox_days=settings.keep_outbox_days,
                drills_days=settings.keep_drills_days,
                keys_days=settings.keep_keys_days,
            ),
        ),
        sweep=Sweep(
            Comparison(
                parts.store,
                orphans,
                late,
                late_store,
                parts.provider,
                foreign_charges=settings.foreign_charges,
            ),
            locks,
            late_store,
            runs,
            unread,
            parts.provider,
            first_back=timedelta(days=settings.sweep_first_days),
        ),
        late=late,
        late_store=late_store,
        figures=OpenFigures(parts.pool, late_store, runs),
        recovery=recovery,
        invariants=InvariantChecks(parts.pool, locks),
        probe=parts.provider.probe,
        send_timeout_s=send_timeout_s,
        threads=RECONCILER_THREADS,
    )


def wait_for_mode(settings: Settings, stop: threading.Event) -> None:
    """Wait until the mode of the open payments is known to be the provider's; send no call before."""
    mode = settings.provider_mode
    while mode is not None and not stop.is_set():
        try:
            claim_mode(settings.database_url or "", mode)
            return
        except ModeConflict as error:
            raise SettingsError(str(error)) from error
        except (Unreachable, DatabaseError) as error:
            # No payment can be settled without the database either; an operator may end the wait.
            log.warning("reconciler.waits_for_database", extra={"error": str(error).strip()})
            stop.wait(MODE_AGAIN_S)
