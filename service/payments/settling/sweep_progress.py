"""How far each of the provider's lists has been swept: a checkpoint that outlives the process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.settling.store import Run
from service.providers.later import Feed, Page, Slice
from service.resilience.deadline import Deadline

# Clocks differ and commits are late: each sweep reads an hour again that the last one read.
OVERLAP = timedelta(hours=1)
# A provider whose clock is ahead lists charges from what is still to come here.
CLOCKS_DIFFER = timedelta(minutes=10)
# A checkpoint from the future was dated by a clock that was wrong, for how long is not known: it
# proves nothing, and the time in which a provider remembers keys is read again.
DISTRUSTED = timedelta(days=2)
# The provider forgets its events after 30 days. After a longer pause they cannot tell of changes to
# what is older, so the other lists are read again from before it: reservations, late payments and
# failed refunds are younger than a month, disputes may take four.
EVENTS_KEPT = timedelta(days=29)
READ_AGAIN = {Feed.DISPUTES: timedelta(days=120), Feed.EVENTS: OVERLAP}
READ_AGAIN_ELSE = timedelta(days=30)
# A slice with more is no slice: a list that repeats itself, or a rush. Half as wide it is tried again.
SLICE_MOST = 100_000
# A slice is to hold some pages: few empty reads in the night, small steps in a rush.
WIDTH_FIRST_S = 3600
WIDTH_MAX_S = 3600
_FEW, _MANY = 500, 2000
PAGE_SIZE_MAX = 100
PAGE_SIZE_MIN = 10

_SAVE = Statement(
    "late_save_sweep",
    """
    UPDATE background_runs SET detail = %(detail)s::jsonb,
        leased_until = now() + %(lease_s)s::float8 * interval '1 second'
    WHERE name = %(name)s::text AND fence = %(fence)s::bigint
    RETURNING 1
    """,
)

_SWEPT = Statement(
    "late_swept",
    """
    SELECT name, detail FROM background_runs
    WHERE name = ANY(%(names)s::text[])
    """,
)


def run_name(provider: str, feed: Feed) -> str:
    """Of each provider's lists one: else what one has read would pass for read in another's."""
    return f"sweep {provider}" if feed is Feed.CHARGES else f"sweep {provider} {feed.value}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the present pass over one list is; `swept_to` goes back only with a wrong clock."""

    began: datetime
    # The start of the present slice, and where in it to read on.
    position: datetime
    after: str | None = None
    in_slice: int = 0
    # All that was made before it has been read by now.
    swept_to: datetime | None = None
    width_s: int = WIDTH_FIRST_S
    page_size: int = PAGE_SIZE_MAX
    compared: int = 0

    @classmethod
    def of(cls, detail: Mapping[str, Any], now: datetime, feed: Feed = Feed.CHARGES) -> Progress:
        """The pass that was cut short, else a new one from where the last whole one ended."""
        swept_to = _moment(detail.get("swept_to"))
        width_s = int(detail.get("width_s", WIDTH_FIRST_S))
        page_size = int(detail.get("page_size", PAGE_SIZE_MAX))
        position, began = _moment(detail.get("position")), _moment(detail.get("began"))
        if max(swept_to or now, began or now) > now + CLOCKS_DIFFER:
            swept_to, position = now - DISTRUSTED, None
        if position is not None and began is not None:
            return cls(
                began,
                position,
                after=detail.get("after"),
                in_slice=int(detail.get("in_slice", 0)),
                swept_to=swept_to,
                width_s=width_s,
                page_size=page_size,
                compared=int(detail.get("compared", 0)),
            )
        paused = now - (swept_to or now)
        overlap = READ_AGAIN.get(feed, READ_AGAIN_ELSE) if paused > EVENTS_KEPT else OVERLAP
        start = (swept_to or now) - overlap
        return cls(now, start, swept_to=swept_to, width_s=width_s, page_size=page_size)

    @property
    def slice(self) -> Slice:
        """What to read next."""
        return Slice(self.position, self._until, self.after, self.page_size)

    @property
    def _until(self) -> datetime:
        until = self.position + timedelta(seconds=self.width_s)
        # The last slice takes along what a clock ahead of ours has dated later.
        return self.began + CLOCKS_DIFFER if until >= self.began else until

    @property
    def is_done(self) -> bool:
        return self.position >= self.began

    def past(self, page: Page, size: int) -> Progress:
        """After a page of so many items: the next page, or the next slice."""
        # A page that has a next one was full, whatever of it was about us.
        size = size if page.after is None else max(size, page.page_size)
        read = replace(
            self,
            in_slice=self.in_slice + size,
            compared=self.compared + size,
            page_size=page.page_size,
        )
        if page.after is not None:
            return replace(read, after=page.after)
        reached = min(self._until, self.began)
        return replace(
            read,
            position=self._until,
            after=None,
            in_slice=0,
            swept_to=max(reached, self.swept_to or reached),
            width_s=_next_width_s(self.width_s, read.in_slice),
            page_size=min(2 * page.page_size, PAGE_SIZE_MAX),
        )

    @property
    def is_endless(self) -> bool:
        """Whether the present slice holds more than any slice may."""
        return self.after is not None and self.in_slice > SLICE_MOST

    def again_narrower(self) -> Progress:
        """The present slice from its start, half as wide: a list that repeats itself goes no further."""
        return replace(self, after=None, in_slice=0, width_s=max(self.width_s // 2, 1))

    def with_smaller_pages(self) -> Progress:
        """After a page that did not come in time."""
        return replace(self, page_size=max(self.page_size // 2, PAGE_SIZE_MIN))

    def detail(self) -> dict[str, Any]:
        """As JSON; of a pass that is done only what the next one begins with."""
        kept = {
            "swept_to": self.swept_to.isoformat() if self.swept_to else None,
            "width_s": self.width_s,
            "page_size": self.page_size,
            "compared": self.compared,
        }
        if self.is_done:
            return kept
        return kept | {
            "began": self.began.isoformat(),
            "position": self.position.isoformat(),
            "after": self.after,
            "in_slice": self.in_slice,
        }


def _next_width_s(width_s: int, in_slice: int) -> int:
    if in_slice < _FEW:
        return min(2 * width_s, WIDTH_MAX_S)
    return max(width_s // 2, 1) if in_slice > _MANY else width_s


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


class SweepRuns:
    """Checkpoints of the sweep, in `background_runs`."""

    def __init__(self, pool: ConnectionPool, provider: str) -> None:
        self._pool = pool
        self._names = {feed: run_name(provider, feed) for feed in Feed}

    def name(self, feed: Feed) -> str:
        return self._names[feed]

    def save(self, run: Run, progress: Progress, lease_s: float, deadline: Deadline) -> bool:
        """Commit how far it is and keep the lease for so long; False: it is somebody else's."""
        rows = self._pool.run(
            _SAVE,
            {
                "name": run.name,
                "fence": run.fence,
                "detail": json.dumps(progress.detail()),
                "lease_s": lease_s,
            },
            deadline,
        )
        return bool(rows)

    def swept_to(
        self, deadline: Deadline, *, feeds: tuple[Feed, ...] = tuple(Feed)
    ) -> datetime | None:
        """Everything that the provider had before this moment, in all `feeds`, has been compared
        with our books; None: one of them has never been swept.

        After a restore the books are older than the provider's: once this is past the moment at
        which the restored database came up, one whole sweep over the lost time has ended.
        """
        names = [self._names[feed] for feed in feeds]
        rows = self._pool.run(_SWEPT, {"names": names}, deadline)
        moments = [_moment(detail.get("swept_to")) for _, detail in rows]
        known = [moment for moment in moments if moment is not None]
        return min(known) if len(known) == len(names) else None


def age_s(swept_to: datetime) -> float:
    """How long ago that was, by this host's clock."""
    return max(0.0, (datetime.now(UTC) - swept_to).total_seconds())
