"""The sweep's progress in each of the provider's lists: a checkpoint in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.settling.run_locks import BackgroundRun
from service.providers.later import Feed, Page, Slice
from service.resilience.deadline import Deadline

# Clocks differ and commits are late: each sweep repeats the last hour of the one before.
OVERLAP = timedelta(hours=1)
# A provider with a fast clock lists charges from our future.
CLOCKS_DIFFER = timedelta(minutes=10)
# A checkpoint from the future came from a wrong clock, since an unknown time: it proves nothing, and
# the time for which a provider remembers keys is read again.
DISTRUSTED = timedelta(days=2)
# The provider deletes its events after 30 days. After a longer pause they lack changes of older
# objects, so the other lists are read again from before it: reservations, late payments and failed
# refunds are younger than a month, disputes may take four.
EVENTS_KEPT = timedelta(days=29)
READ_AGAIN = {Feed.DISPUTES: timedelta(days=120), Feed.EVENTS: OVERLAP}
READ_AGAIN_ELSE = timedelta(days=30)
# A slice with more items is a list that repeats itself, or a rush: it is halved and tried again.
SLICE_MOST = 100_000
# A slice should have some pages: few empty reads in quiet weeks, small steps in a rush.
WIDTH_FIRST_S = 3600
WIDTH_MAX_S = 7 * 86_400
# A list that was never swept is first read as far back as providers remember keys: until then a
# retry may meet its lost charge. The older part follows in a separate run.
FIRST_READ = timedelta(days=2)
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
    """The name for each provider's list: a shared one would count one provider's pages for another."""
    return f"sweep {provider}" if feed is Feed.CHARGES else f"sweep {provider} {feed.value}"


@dataclass(frozen=True, slots=True)
class Progress:
    """The position of the present pass over one list; `swept_to` goes back only with a wrong clock."""

    began: datetime
    # The start of the present slice, and the next position in it.
    position: datetime
    after: str | None = None
    in_slice: int = 0
    # All objects created before it were read.
    swept_to: datetime | None = None
    width_s: int = WIDTH_FIRST_S
    page_size: int = PAGE_SIZE_MAX
    compared: int = 0
    # The end of an unreadable slice: up to here it is halved until the object is isolated.
    narrow_until: datetime | None = None
    # The start of the first pass over a list that was never swept before.
    older_until: datetime | None = None
    # A position in the slice that is met again if the list is circular, and the pages so far.
    mark: str | None = None
    pages: int = 0
    is_circle: bool = False

    @classmethod
    def of(cls, detail: Mapping[str, Any], now: datetime, feed: Feed = Feed.CHARGES) -> Progress:
        """The interrupted pass, else a new one from the end of the last whole one."""
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
                narrow_until=_moment(detail.get("narrow_until")),
                older_until=_moment(detail.get("older_until")),
            )
        if swept_to is None:
            start = now - FIRST_READ
            return cls(now, start, older_until=start, width_s=width_s, page_size=page_size)
        overlap = OVERLAP
        if now - swept_to > EVENTS_KEPT:
            overlap = READ_AGAIN.get(feed, READ_AGAIN_ELSE)
        return cls(
            now,
            swept_to - overlap,
            swept_to=swept_to,
            older_until=_moment(detail.get("older_until")),
            width_s=width_s,
            page_size=page_size,
        )

    @classmethod
    def of_older(
        cls, detail: Mapping[str, Any], older_until: datetime, back: timedelta, feed: Feed
    ) -> Progress:
        """The pass over the part older than the first sweep, `back` before its start."""
        position = _moment(detail.get("position"))
        if position is not None:
            return cls.of(detail, max(older_until, datetime.now(UTC)), feed)
        if feed is Feed.DISPUTES:
            back = max(back, READ_AGAIN[feed])
        elif feed is Feed.EVENTS:
            back = min(back, EVENTS_KEPT)
        return cls(older_until, older_until - back)

    @property
    def slice(self) -> Slice:
        """The next slice to read."""
        return Slice(self.position, self._until, self.after, self.page_size)

    @property
    def _until(self) -> datetime:
        until = self.position + timedelta(seconds=self.width_s)
        # The last slice includes objects dated later by a clock ahead of ours.
        return self.began + CLOCKS_DIFFER if until >= self.began else until

    @property
    def is_done(self) -> bool:
        return self.position >= self.began

    def past(self, page: Page, size: int) -> Progress:
        """The progress after a page with this many items: the next page, or the next slice."""
        # A page with a next one was full, even if few of its items were ours.
        size = size if page.after is None else max(size, page.page_size)
        read = replace(
            self,
            in_slice=self.in_slice + size,
            compared=self.compared + size,
            page_size=page.page_size,
        )
        if page.after is not None:
            return read._within(page.after)
        width_s = _next_width_s(self.width_s, read.in_slice)
        if self.narrow_until is not None and self._until < self.narrow_until:
            # The unreadable object is in the rest: its half is next.
            rest_s = int((self.narrow_until - self._until).total_seconds())
            width_s = max(min(width_s, rest_s // 2), 1)
        return replace(
            read._next_slice(), width_s=width_s, page_size=min(2 * page.page_size, PAGE_SIZE_MAX)
        )

    def _within(self, after: str) -> Progress:
        """Continue in the same slice. The mark moves at each power of two, so that a circle of any
        length meets it (Brent)."""
        pages = self.pages + 1
        is_circle = after == self.mark
        mark = after if pages & (pages - 1) == 0 else self.mark
        return replace(self, after=after, pages=pages, mark=mark, is_circle=is_circle)

    def _next_slice(self) -> Progress:
        reached = min(self._until, self.began)
        return replace(
            self,
            position=self._until,
            after=None,
            in_slice=0,
            mark=None,
            pages=0,
            is_circle=False,
            swept_to=max(reached, self.swept_to or reached),
        )

    @property
    def is_endless(self) -> bool:
        """Whether the present slice has too many items, or is circular."""
        return self.is_circle or (self.after is not None and self.in_slice > SLICE_MOST)

    @property
    def is_narrowest(self) -> bool:
        """Whether no smaller part of the list can be requested."""
        return self.width_s == 1

    def again_narrower(self) -> Progress:
        """The present slice from its start, half as wide, to isolate an unreadable object."""
        return replace(
            self,
            after=None,
            in_slice=0,
            mark=None,
            pages=0,
            is_circle=False,
            width_s=max(self.width_s // 2, 1),
            narrow_until=min(self._until, self.began),
        )

    def skipped(self) -> Progress:
        """The progress after the present slice was left unread."""
        return self._next_slice()

    def with_smaller_pages(self) -> Progress:
        """The progress after a page that was too slow."""
        return replace(self, page_size=max(self.page_size // 2, PAGE_SIZE_MIN))

    def detail(self) -> dict[str, Any]:
        """The JSON form; of a completed pass only the start of the next one."""
        kept = {
            "swept_to": self.swept_to.isoformat() if self.swept_to else None,
            "width_s": self.width_s,
            "page_size": self.page_size,
            "compared": self.compared,
            "older_until": self.older_until.isoformat() if self.older_until else None,
        }
        if self.is_done:
            return kept
        return kept | {
            "began": self.began.isoformat(),
            "position": self.position.isoformat(),
            "after": self.after,
            "in_slice": self.in_slice,
            "narrow_until": self.narrow_until.isoformat() if self.narrow_until else None,
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

    def older_name(self, feed: Feed) -> str:
        """The run over the part older than the first sweep."""
        return f"older {self._names[feed]}"

    def older(self, deadline: Deadline) -> tuple[dict[Feed, datetime], bool]:
        """The lists with a due older part, and its end; also whether any part is left.

        The older part of a list follows its first pass: the newest objects matter most.
        """
        names = [*self._names.values(), *map(self.older_name, Feed)]
        details: dict[str, Any] = dict(self._pool.run(_SWEPT, {"names": names}, deadline))
        ready, is_any_left = {}, False
        for feed, name in self._names.items():
            swept_to = _moment(details.get(name, {}).get("swept_to"))
            until = _moment(details.get(name, {}).get("older_until"))
            read_to = _moment(details.get(self.older_name(feed), {}).get("swept_to"))
            is_left = until is None or read_to is None or read_to < until
            if until is not None and is_left and swept_to and swept_to >= until + FIRST_READ:
                ready[feed] = until
            is_any_left |= is_left if until is not None else swept_to is None
        return ready, is_any_left

    def save(
        self, run: BackgroundRun, progress: Progress, lease_s: float, deadline: Deadline
    ) -> bool:
        """Commit the progress and renew the lease; False: another process has it."""
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
        """The time before which all objects of the provider in all `feeds` were compared with our
        books; None: one of them was never swept.

        After a restore our books are older than the provider's: when this time is later than the
        start of the restored database, one whole sweep over the lost time has ended.
        """
        names = [self._names[feed] for feed in feeds]
        rows = self._pool.run(_SWEPT, {"names": names}, deadline)
        moments = [_moment(detail.get("swept_to")) for _, detail in rows]
        known = [moment for moment in moments if moment is not None]
        return min(known) if len(known) == len(names) else None


def age_s(swept_to: datetime) -> float:
    """The age of that time, by this host's clock."""
    return max(0.0, (datetime.now(UTC) - swept_to).total_seconds())
