"""`make check-supply` is never green without having looked."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.check_supply import HOLES, LOCKS, NOT_CHECKED, ROOT, pins, verdict

SOUND = {"name": "flask", "version": "3.1.3", "vulns": []}
UNKNOWN = {"name": "ours", "version": "1", "skip_reason": "not found"}
OPEN = {
    "name": "urllib3",
    "version": "1.26.4",
    "vulns": [{"id": "PYSEC-2021-108", "fix_versions": ["1.26.5"]}],
}


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([SOUND], 0, "1 packages, none with a known hole"),
        ([], NOT_CHECKED, "NOT CHECKED: the vulnerability service cannot be reached"),
        ([SOUND, UNKNOWN], NOT_CHECKED, "NOT CHECKED: 1 of 2 packages could not be looked up"),
        (
            [SOUND, OPEN],
            HOLES,
            "urllib3 1.26.4 has a known hole, PYSEC-2021-108; mended in 1.26.5",
        ),
        ([OPEN, UNKNOWN], HOLES, "NOT CHECKED: 1 of 2 packages could not be looked up"),
    ],
)
def test_only_what_was_looked_up_and_has_no_hole_is_green(
    packages: list[dict[str, Any]], status: int, says: str
) -> None:
    found, lines = verdict(packages)

    assert found == status
    assert lines[-1] == says


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_that_pins_is_read(lock: str) -> None:
    text = (ROOT / lock).read_text()

    assert len(pins(ROOT / lock)) == sum("==" in line for line in text.splitlines())
