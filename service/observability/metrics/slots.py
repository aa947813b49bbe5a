"""The metric slot of each process of an instance, which it holds for its lifetime.

The client library names its files by process id, so that each restart of a worker leaves files
behind and each scrape gets slower. Here a process takes the first free slot of its role (`web-0`,
`web-1`, `reconciler-0`) by a file lock that the kernel releases however the process ends, kill -9
included. The next process in the slot continues the counters of the last one and resets its
gauges; no hook has to run for that.

`PROMETHEUS_MULTIPROC_DIR` must be set (or `use_directory` called) before the catalogue is imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.samples import Exemplar

from service.observability.metrics.slot_file import SlotFile
from service.process.file_lock import file_lock, is_locked

DIRECTORY_ENV = "PROMETHEUS_MULTIPROC_DIR"
# Far more processes than one machine runs; more slots than this are a fault.
_SLOTS_LIMIT = 512
# A process that searches a free slot holds the lock for well under a millisecond.
_CLAIM_WAIT_S = 2.0

log = logging.getLogger(__name__)


class _Process:
    """This process's slot, the lock that holds it, its files and its values."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slot: str | None = None
        self.lock_fileno = -1
        self.files: dict[str, SlotFile] = {}
        self.values: list[SlotValue] = []

    def file(self, kind: str) -> SlotFile:
        """The file for counters, histograms, or gauges of one mode; lock held by the caller."""
        file = self.files.get(kind)
        if file is None:
            on_disk = self.lock_fileno >= 0
            path = directory() / f"{kind}_{self.slot}.db" if on_disk else None
            file = self.files[kind] = SlotFile(path)
        return file

    def leave(self) -> None:
        """Give up the slot, without unlocking it for a parent that still uses it."""
        for value in self.values:
            value.file = None
        for file in self.files.values():
            file.close()
        self.files.clear()
        self.slot = None
        if self.lock_fileno >= 0:
            os.close(self.lock_fileno)
            self.lock_fileno = -1


class SlotValue:
    """One number of the client library, kept in this process's slot."""

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: list[str],
        labelvalues: list[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._kind = f"gauge_{multiprocess_mode}" if typ == "gauge" else typ
        self._key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self._position = 0
        self._number = 0.0
        self._exemplar_positions: list[int] | None = None
        self.file: SlotFile | None = None
        with _process.lock:
            _process.values.append(self)
            if _process.slot is not None:
                self.attach()

    def attach(self) -> SlotFile:
        """Continue from the slot's stored value; lock held by the caller."""
        self._exemplar_positions = None
        file = self.file = _process.file(self._kind)
        self._position = file.position(self._key)
        self._number = file.read(self._position)[0]
        return file

    def inc(self, amount: float) -> None:
        with _process.lock:
            file = self.file or _file_of(self)
            self._number += amount
            file.write(self._position, self._number, 0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with _process.lock:
            file = self.file or _file_of(self)
            self._number = value
            file.write(self._position, value, timestamp or 0.0)

    def get(self) -> float:
        with _process.lock:
            if self.file is None:
                _file_of(self)
            return self._number

    def set_exemplar(self, exemplar: Exemplar) -> None:
        """Keep the last observation that has a trace: an id of 32 hexadecimal digits, else none."""
        trace_id = exemplar.labels.get("trace_id", "")
        try:
            words = [int(trace_id[at : at + 8], 16) for at in range(0, 32, 8)]
        except ValueError:
            return
        moment = float(exemplar.timestamp or time.time())
        with _process.lock:
            if self.file is None:
                _file_of(self)
            file = _process.file("exemplar")
            # The id as four integers, which doubles hold exactly, in entries beside the value.
            if self._exemplar_positions is None:
                self._exemplar_positions = [file.position(f"{part}{self._key}") for part in "012"]
            pairs = (exemplar.value, moment), words[:2], words[2:]
            for position, pair in zip(self._exemplar_positions, pairs, strict=True):
                file.write(position, float(pair[0]), float(pair[1]))

    def get_exemplar(self) -> None:
        """Not used: exemplars are read from the files, with those of all processes."""


_process = _Process()


def directory() -> Path:
    """The directory with the files of this instance's processes."""
    return Path(os.environ[DIRECTORY_ENV])


def active() -> bool:
    """Whether this process shares its metrics with others."""
    return values.ValueClass is SlotValue


def use_directory(path: Path) -> None:
    """Share metrics through this directory, from now on and in child processes.

    Call it before `service.observability.metrics.catalogue` is imported: existing metrics stay private.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ[DIRECTORY_ENV] = str(path.resolve())
    _install()


def claim(role: str) -> str:
    """Take a slot of this role for the life of this process and return its name, such as `web-0`.

    Call it once in each process, after the fork and before its first number; a process that already
    has a slot keeps it. The numbers of a process that does not call it stay in its memory, so that a
    command in a shell with PROMETHEUS_MULTIPROC_DIR leaves no files beside the served ones. Never
    raises for the disk: without a slot the numbers stay in memory.
    """
    if not role.isalpha():
        raise ValueError(f"A role is one word of letters, not {role!r}: it is part of file names.")
    with _process.lock:
        if _process.slot is None and active():
            try:
                _take_slot(role)
            except OSError as error:
                log.warning("metrics.in_memory", extra={"role": role, "reason": str(error)})
        return _attach_all(role)


def slot() -> str | None:
    """The name of this process's slot, None when it has none (yet)."""
    return _process.slot


def live_slots(path: Path, *, wait_s: float = 0.0) -> set[str] | None:
    """The slots that living processes hold; None when that is not known within `wait_s`.

    Only one process tests at a time: a scrape, or a process that starts, delays the others.
    """
    try:
        with _looking_for_slots(path, wait_s=wait_s) as is_alone:
            if is_alone:
                return {lock.stem for lock in path.glob("*-*.lock") if is_locked(lock)}
    # No directory yet, or a full disk: the report still shows everything else.
    except OSError as error:
        log.warning("metrics.slots_unreadable", extra={"reason": str(error)})
    return None


def _take_slot(role: str) -> None:
    path = directory()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _looking_for_slots(path):
        for number in range(_SLOTS_LIMIT):
            name = f"{role}-{number}"
            fileno = file_lock(path / f"{name}.lock")
            if fileno is None:
                continue
            _process.slot, _process.lock_fileno = name, fileno
            # The last holder's gauges ended with it.
            for gauge in path.glob(f"gauge_live*_{name}.db"):
                gauge.unlink(missing_ok=True)
            return
    raise OSError(f"all {_SLOTS_LIMIT} slots of {role} are taken")


@contextlib.contextmanager
def _looking_for_slots(path: Path, wait_s: float = _CLAIM_WAIT_S) -> Iterator[bool]:
    """Exclude others from taking or testing slots: a test must not look like a holder."""
    # A suspended holder must not block us: at worst a free slot is skipped.
    fileno = file_lock(path / "slots.lock", wait_s=wait_s)
    try:
        yield fileno is not None
    finally:
        if fileno is not None:
            os.close(fileno)


def _file_of(value: SlotValue) -> SlotFile:
    """The file of a value without one; a process that claimed no slot has only its memory."""
    _attach_all("process")
    return value.file or value.attach()


def _attach_all(role: str) -> str:
    """Attach every value to this process's slot, or to memory without one; lock held by the caller."""
    if _process.slot is None:
        _process.slot = f"{role}-pid{os.getpid()}"
    for value in _process.values:
        if value.file is None:
            value.attach()
    return _process.slot


def _start_anew_in_child() -> None:
    """After a fork: the slot belongs to the parent, whose other thread may have held the lock."""
    _process.lock = threading.Lock()
    _process.leave()


def _install() -> None:
    # The client library selects its storage by the same variable, at its import.
    values.ValueClass = SlotValue


os.register_at_fork(after_in_child=_start_anew_in_child)
if os.environ.get(DIRECTORY_ENV):
    _install()
