"""The reconciler: look-ups, the queue, the sweep and the figures in one process."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from service.app.background import Background
from service.app.parts import build_parts, send_spans
from service.app.rounds import LATE_AT_ONCE, LateRounds, LookUpRounds, MovementRounds, ProbeRounds
from service.database.direct import DatabaseError, Unreachable
from service.database.pool.pool import ConnectionPool
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
    provider, pool = parts.provider, parts.pool
    # A queued payment may wait, but its lease limits the work: a call, then its record.
    send_timeout_s = settings.provider_timeout_ms / 1000 + RECORD_TIMEOUT_S
    lease_s = settings.provider_timeout_ms / 1000 + 2 * RECORD_TIMEOUT_S
    # A check makes four calls, each within the provider's deadline.
    late_store = LateStore(pool, lease_s=4 * lease_s, provider=provider.name)
    orphans, locks = OrphanStore(pool), RunLocks(pool)
    late = LateFacts(parts.store, late_store, parts.movements, orphans, provider)
    runs, unread = SweepRuns(pool, provider.name), UnreadStore(pool, provider.name)
    recovery = Recovery(pool, provider.name)
    return Background(
        pool=pool,
        probe=ProbeRounds(parts.leases, provider.probe),
        look_ups=LookUpRounds(
            parts.leases,
            Reconciler(parts.store, parts.leases, parts.handler, provider),
            send_timeout_s=send_timeout_s,
            threads=RECONCILER_THREADS,
        ),
        movements=MovementRounds(
            parts.movements,
            MovementReconciler(parts.movements, parts.movement_handler, provider),
            send_timeout_s=send_timeout_s,
            threads=RECONCILER_THREADS,
        ),
        late=LateRounds(late, late_store, send_timeout_s=send_timeout_s),
        inbox=WebhookInbox(pool),
        locks=locks,
        forwarder=Forwarder(
            parts.store,
            parts.leases,
            orphans,
            parts.handler,
            provider,
            unread,
            send_timeout_s=send_timeout_s,
            batch_max=RECONCILER_THREADS,
            is_recovering=recovery.is_recovering,
        ),
        deliverer=_deliverer(settings, pool),
        open_limit=OpenLimit(pool, most=settings.open_payments_max),
        retention=Retention(pool, locks, _kept(settings)),
        sweep=Sweep(
            Comparison(
                parts.store,
                orphans,
                late,
                late_store,
                provider,
                foreign_charges=settings.foreign_charges,
            ),
            locks,
            late_store,
            runs,
            unread,
            provider,
            first_back=timedelta(days=settings.sweep_first_days),
        ),
        figures=OpenFigures(pool, late_store, runs),
        recovery=recovery,
        invariants=InvariantChecks(pool, locks),
        threads=RECONCILER_THREADS,
    )


def _deliverer(settings: Settings, pool: ConnectionPool) -> Deliverer:
    sender = WebhookSender(
        watchdog=pool.watchdog,
        allow_private=settings.webhook_allow_private,
        ca_file=settings.webhook_ca_file,
    )
    return Deliverer(pool, sender, timeout_s=settings.webhook_timeout_ms / 1000)


def _kept(settings: Settings) -> Kept:
    return Kept(
        inbox_days=settings.keep_inbox_days,
        outbox_days=settings.keep_outbox_days,
        drills_days=settings.keep_drills_days,
        keys_days=settings.keep_keys_days,
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
