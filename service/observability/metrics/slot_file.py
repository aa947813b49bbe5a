"""One file of numbers that one process writes and any process may read at any time.

Layout: the length in use (8 bytes), then entries of: key length (4 bytes), key padded to 8 bytes, a
number and its time (8 bytes each). Only the owner appends, key before length, so a reader never
sees half an entry and a killed owner leaves a valid file.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_HEADER = struct.Struct("=q")
_KEY_LENGTH = struct.Struct("=i")
_NUMBERS = struct.Struct("=dd")
_START_BYTES = 1 << 16
# 64 times the size of the whole catalogue: a larger file is not ours.
_LIMIT_BYTES = 1 << 25


class DamagedFile(Exception):
    """The file's content was not written by one of our processes."""


class SlotFile:
    """The writer's side. Not thread-safe: the caller holds a lock.

    A full disk never raises here: the values continue in memory, `in_memory` is set, and readers
    keep seeing the last values that fitted.
    """

    def __init__(self, path: Path | None) -> None:
        self.in_memory = path is None
        self._fileno = -1
        self._positions: dict[str, int] = {}
        self._used = _HEADER.size
        self._mapped = self._open(path) if path is not None else mmap.mmap(-1, _START_BYTES)
        self._mapped[: _HEADER.size] = _HEADER.pack(self._used)

    def position(self, key: str) -> int:
        """The offset of this key's values; a new key starts with zeros."""
        position = self._positions.get(key)
        if position is None:
            position = self._positions[key] = self._append(key)
        return position

    def read(self, position: int) -> tuple[float, float]:
        number, time = _NUMBERS.unpack_from(self._mapped, position)
        return number, time

    def write(self, position: int, number: float, time: float) -> None:
        # One assignment: `pack_into` writes byte by byte and a reader would see zeros.
        self._mapped[position : position + _NUMBERS.size] = _NUMBERS.pack(number, time)

    def close(self) -> None:
        self._mapped.close()
        if self._fileno >= 0:
            os.close(self._fileno)
            self._fileno = -1

    def _open(self, path: Path) -> mmap.mmap:
        try:
            self._fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._fileno).st_size
            if size:
                try:
                    content = os.pread(self._fileno, size, 0)
                    entries = list(_entries(content))
                except DamagedFile:
                    os.ftruncate(self._fileno, 0)
                    size = 0
                else:
                    self._positions = {key: position for key, _, _, position in entries}
                    self._used = _HEADER.unpack_from(content)[0]
            size = max(size, _START_BYTES)
            _reserve(self._fileno, size)
            return mmap.mmap(self._fileno, size)
        except OSError:
            self.in_memory = True
            self._positions, self._used = {}, _HEADER.size
            return mmap.mmap(-1, _START_BYTES)

    def _append(self, key: str) -> int:
        encoded = key.encode()
        padding = -(_KEY_LENGTH.size + len(encoded)) % 8
        entry = _KEY_LENGTH.pack(len(encoded)) + encoded + bytes(padding + _NUMBERS.size)
        while self._used + len(entry) > len(self._mapped):
            self._grow()
        end = self._used + len(entry)
        self._mapped[self._used : end] = entry
        self._used = end
        self._mapped[0 : _HEADER.size] = _HEADER.pack(end)
        return end - _NUMBERS.size

    def _grow(self) -> None:
        size = 2 * len(self._mapped)
        try:
            if self.in_memory:
                raise OSError
            _reserve(self._fileno, size)
            grown = mmap.mmap(self._fileno, size)
        except OSError:
            self.in_memory = True
            grown = mmap.mmap(-1, size)
            grown[: len(self._mapped)] = self._mapped[:]
        self._mapped.close()
        self._mapped = grown


def _reserve(fileno: int, size: int) -> None:
    """Reserve these bytes on disk: without them a write to the map would end us (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fileno, 0, size)
    else:
        os.ftruncate(fileno, size)


def read_file(path: Path) -> Iterator[tuple[str, float, float]]:
    """Each (key, number, time) of a file that its owner may be writing; raises DamagedFile."""
    with path.open("rb") as file:
        content = file.read(_START_BYTES)
        if len(content) < _HEADER.size:
            return
        used = _HEADER.unpack_from(content)[0]
        if used > _LIMIT_BYTES:
            raise DamagedFile(f"{path.name} claims {used} bytes")
        if used > len(content):
            content += file.read(used - len(content))
    for key, number, time, _ in _entries(content):
        yield key, number, time


def _entries(content: bytes) -> Iterator[tuple[str, float, float, int]]:
    if len(content) < _HEADER.size:
        raise DamagedFile("no header")
    used = _HEADER.unpack_from(content)[0]
    # A new file, still without content.
    if used == 0:
        return
    if not _HEADER.size <= used <= len(content):
        raise DamagedFile(f"{used} of {len(content)} bytes are said to be in use")
    at = _HEADER.size
    while at < used:
        length = _KEY_LENGTH.unpack_from(content, at)[0]
        start = at + _KEY_LENGTH.size
        position = at + (_KEY_LENGTH.size + length + 7) // 8 * 8
        at = position + _NUMBERS.size
        if length < 0 or at > used:
            raise DamagedFile("an entry goes past the end")
        number, time = _NUMBERS.unpack_from(content, position)
        try:
            yield content[start : start + length].decode(), number, time, position
        except UnicodeDecodeError as error:
            raise DamagedFile("a key is not text") from error
