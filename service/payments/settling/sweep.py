"""The reverse sweep: compares the provider's books with ours, and repairs or reports the rest.

A database failover can lose the newest commits; then only the provider knows a charge. Later changes
of a settled payment also happen at the provider first. Four lists are read, oldest slice first:
charges, refunds, disputes, and events, which contain every change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from service.errors import Busy, ProviderUnavailable
from service.observability.metrics import catalogue as metrics
from service.payments.settling.late import parse_ids
from service.payments.settling.late_store import LateStore
from service.payments.settling.run_locks import BackgroundRun, RunLocks
from service.payments.settling.sweep_compare import Comparison
from service.payments.settling.sweep_progress import Progress, SweepRuns
from service.payments.settling.sweep_unread import Parked, UnreadStore
from service.providers.later import (
    Answered,
    CursorLost,
    Feed,
    FeedMissing,
    LaterProvider,
    Page,
    PageUnreadable,
    Slice,
)
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

EVERY_S = 300.0
# The time of one list before the next has its turn: a long list delays no other for longer.
TURN_S = 20.0
# One page, its comparison and its checkpoint.
PAGE_S = 15.0
# The lease covers a page and its comparison; the checkpoint after each page renews it.
LEASE_S = 60.0
# The pause after an unreadable page; longer at the provider's request.
FAILED_AGAIN_S = 10.0
FAILED_AGAIN_MAX_S = 300.0
# The unread parts of a list before the list counts as unreadable.
UNREAD_SLICES_MAX = 100
# Unread objects that are looked at again in one round.
LOOKED_AT_AGAIN = 5
# How far back the first sweep of a list reads.
FIRST_BACK = timedelta(days=30)
# A run that is done once.
NEVER_S = 10 * 365 * 86_400.0


class Sweep:
    """Searches the provider's books for money that our books do not explain."""

    def __init__(
        self,
        comparison: Comparison,
        locks: RunLocks,
        late_store: LateStore,
        runs: SweepRuns,
        unread: UnreadStore,
        provider: LaterProvider,
        *,
        first_back: timedelta = FIRST_BACK,
    ) -> None:
        self._comparison = comparison
        self._locks = locks
        self._late_store = late_store
        self._runs = runs
        self._provider = provider
        self._unread = unread
        self._first_back = first_back
        # Whether this process knows that no list has an older part left to be read.
        self._is_all_older_read = False

    def run_if_due(self, deadline: Deadline, *, every_s: float = EVERY_S) -> bool:
        """Give each due list a turn; True if one was read. Raises Busy on an outage; each list
        then continues after its last compared page."""
        is_swept = False
        # The same time for each list, independent of the earlier ones.
        turn_s = min(TURN_S, deadline.remaining_s())
        failure: Busy | None = None
        turns: list[Callable[[Deadline], bool]] = [
            *(partial(self._sweep, feed, every_s) for feed in Feed),
            self._look_again,
        ]
        for turn in turns:
            try:
                is_swept |= turn(Deadline.after(turn_s))
            except Busy as error:
                # An unreadable list must not block the others.
                failure = failure or error
        if failure is not None:
            raise failure
        return self._sweep_older(Deadline.after(turn_s)) or is_swept

    def _sweep(self, feed: Feed, every_s: float, deadline: Deadline) -> bool:
        run = self._lease(self._runs.name(feed), every_s)
        if run is None:
            return False
        progress = Progress.of(run.detail, datetime.now(UTC), feed)
        if progress.swept_to is None:
            self._is_all_older_read = False
        return self._read(run, feed, progress, deadline)

    def _sweep_older(self, deadline: Deadline) -> bool:
        """Read the part older than the first sweep: oldest first, after all lists had their turns."""
        if self._is_all_older_read:
            return False
        ready, is_any_left = self._runs.older(Deadline.after(PAGE_S))
        self._is_all_older_read = not is_any_left
        for feed, older_until in ready.items():
            run = self._lease(self._runs.older_name(feed), NEVER_S)
            if run is not None:
                older = Progress.of_older(run.detail, older_until, self._first_back, feed)
                return self._read(run, feed, older, deadline)
        return False

    def _lease(self, name: str, every_s: float) -> BackgroundRun | None:
        return self._locks.lease_run(
            name, every_s=every_s, lease_s=LEASE_S, deadline=Deadline.after(PAGE_S)
        )

    def _read(self, run: BackgroundRun, feed: Feed, progress: Progress, deadline: Deadline) -> bool:
        try:
            while not progress.is_done:
                # A separate time limit: the end of a turn must not fail its last page.
                within = Deadline.after(PAGE_S)
                progress = self._step(feed, progress, within)
                if deadline.expired or progress.is_done:
                    break
                if not self._runs.save(run, progress, LEASE_S, within):
                    return True  # Another process has the lease, with our committed progress.
        except FeedMissing:
            log.warning("sweep.list_missing", extra={"feed": feed.value})
            return self._end(run, feed, _passed(progress), Deadline.after(PAGE_S))
        except Busy as error:
            if not isinstance(error, Answered):
                progress = progress.with_smaller_pages()
            pause_s = min(max(FAILED_AGAIN_S, error.retry_after_s), FAILED_AGAIN_MAX_S)
            self._runs.save(run, progress, pause_s, Deadline.after(PAGE_S))
            raise
        if progress.is_done:
            return self._end(run, feed, progress, Deadline.after(PAGE_S))
        self._runs.save(run, progress, 0.0, Deadline.after(PAGE_S))
        return True

    def _end(self, run: BackgroundRun, feed: Feed, progress: Progress, deadline: Deadline) -> bool:
        self._locks.end_run(run, progress.detail(), deadline)
        log.info("sweep.done", extra={"feed": feed.value, "compared": progress.compared})
        return True

    # --- Pages, and what of them cannot be read ------------------------------------------------

    def _step(self, feed: Feed, progress: Progress, deadline: Deadline) -> Progress:
        """Compare one page; where it cannot be read, ask for less, and leave out the least."""
        try:
            page = self._provider.page(feed, progress.slice, deadline)
        except (PageUnreadable, CursorLost) as error:
            return self._without(feed, progress, error.detail, deadline)
        self._take_page(feed, page, progress.slice, deadline)
        after = progress.past(page, len(page.items) + len(page.unreadable))
        if after.is_endless:
            log.error("sweep.endless", extra={"feed": feed.value, "read": after.in_slice})
            return self._without(feed, progress, "The list does not end.", deadline)
        return after

    def _take_page(self, feed: Feed, page: Page, part: Slice, deadline: Deadline) -> None:
        """Compare what can be read, and park the rest."""
        self._comparison.compare(feed, page.items, deadline)
        if page.unreadable:
            told = [parse_ids(one.merchant_id, one.payment_id) for one in page.unreadable]
            known = self._late_store.payments([ids for ids in told if ids], deadline)
            self._unread.park(feed, page.unreadable, part, set(known), deadline)

    def _without(self, feed: Feed, progress: Progress, reason: str, deadline: Deadline) -> Progress:
        """Half of the slice; its least part is parked, unless the provider reads out nothing."""
        if not progress.is_narrowest:
            return progress.again_narrower()
        if self._unread.slices(feed, deadline) >= UNREAD_SLICES_MAX:
            raise ProviderUnavailable("Too many parts of the provider's list cannot be read.")
        # A list that cannot be read at its newest end either is an outage, and no odd object.
        now = datetime.now(UTC)
        newest = self._provider.page(feed, Slice(now, now + timedelta(minutes=10)), deadline)
        if newest.after is not None and not newest.items:
            raise ProviderUnavailable("The provider's list does not end.")
        self._unread.park_slice(feed, progress.slice, reason, deadline)
        return progress.skipped()

    def _look_again(self, _deadline: Deadline) -> bool:
        """Look again at a few of the objects that could not be read."""
        parked = self._unread.take(LOOKED_AT_AGAIN, Deadline.after(PAGE_S))
        for one in parked:
            within = Deadline.after(PAGE_S)
            try:
                is_read = self._is_read(one, within)
            except Answered:
                is_read = False
            if is_read:
                self._unread.drop(one, Deadline.after(PAGE_S))
                log.warning("sweep.read_at_last", extra={"feed": one.feed, "mark": one.mark})
            else:
                metrics.rows_parked_total.inc()
        return bool(parked)

    def _is_read(self, parked: Parked, deadline: Deadline) -> bool:
        """Whether the object, or all of its slice, could be read and compared by now."""
        if parked.provider_ref is not None:
            items = self._provider.read_again(parked.feed, parked.provider_ref, deadline)
            self._comparison.compare(parked.feed, items, deadline)
            return True
        part: Slice | None = Slice(parked.since, parked.until)
        while part is not None:
            page = self._provider.page(parked.feed, part, deadline)
            self._take_page(parked.feed, page, part, deadline)
            if any(one.mark == parked.mark for one in page.unreadable):
                return False
            part = None if page.after is None else replace(part, after=page.after)
            if part is not None and deadline.expired:
                return False
        return True


def _passed(progress: Progress) -> Progress:
    """Mark a list that this provider does not have as done."""
    return replace(progress, position=progress.began, swept_to=progress.began)
