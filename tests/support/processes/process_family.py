"""Processes and their descendants from /proc, for programs that must leave none behind."""

from __future__ import annotations

from pathlib import Path


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    found = {pid}
    for stat_file in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if parent(int(stat_file.name)) in found:
            found.add(int(stat_file.name))
    return found


def parent(pid: int) -> int:
    """The parent's process id; 0 when the process has ended."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def runs(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return bool(fields) and fields[0] != "Z"


def read(path: str) -> str:
    """A file of /proc, empty when its process has ended."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
