"""Numbers and locks that the processes of one host share through a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.process.file_lock import file_lock, is_locked
from service.process.shared_page import SharedPage

HOLDER = """
import sys
from pathlib import Path
from service.process.file_lock import file_lock
assert file_lock(Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


def test_number_is_seen_by_every_page_of_the_file(tmp_path: Path) -> None:
    one, other = (SharedPage(tmp_path / "page", count=4) for _ in range(2))

    one.numbers[3] = 2.5

    assert (other.numbers[3], other.is_shared) == (2.5, True)


def test_second_process_does_not_wipe_the_page(tmp_path: Path) -> None:
    SharedPage(tmp_path / "page", count=4).numbers[0] = 1.0

    assert SharedPage(tmp_path / "page", count=4).numbers[0] == 1.0


def test_page_without_a_path_is_shared_with_no_other() -> None:
    page = SharedPage(None, count=1)

    with page.exclusive() as is_mine:
        assert (is_mine, page.is_shared, page.numbers[0]) == (True, False, 0.0)


def test_page_is_not_followed_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "page").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="page"):
        SharedPage(tmp_path / "page", count=1)


def test_exclusive_change_waits_for_no_stopped_process(tmp_path: Path) -> None:
    one, other = (SharedPage(tmp_path / "page", count=1) for _ in range(2))

    with one.exclusive() as first, other.exclusive(wait_s=0.01) as second:
        assert (first, second) == (True, False)
    with other.exclusive() as after:
        assert after


def test_file_lock_is_free_after_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert (file_lock(path), is_locked(path)) == (None, True)

    holder.kill()
    holder.communicate()

    fileno = file_lock(path, wait_s=60)
    assert fileno is not None
    os.close(fileno)
    assert not is_locked(path)


def test_wait_for_a_file_lock_ends_when_it_is_not_worth_it(tmp_path: Path) -> None:
    fileno = file_lock(tmp_path / "lock")
    assert fileno is not None

    assert file_lock(tmp_path / "lock", wait_s=600, may_wait=lambda: False) is None
    os.close(fileno)
