"""Ids are ordered by time, so that a moment has a smallest one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from service.ids import first_id_at, new_id


def test_the_first_id_of_a_moment_separates_earlier_from_later() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    made = new_id()
    after = datetime.now(UTC) + timedelta(milliseconds=1)

    assert first_id_at(before) < made < first_id_at(after)
    assert first_id_at(made_at := datetime(2026, 12, 1, tzinfo=UTC)).version == 7
    assert int(first_id_at(made_at).hex[:12], 16) == made_at.timestamp() * 1000
