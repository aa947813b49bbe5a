"""Processes and their descendants as the kernel tells them: for what must leave none behind."""

from __future__ import annotations

from pathlib import Path


def family(pid: int) -> set[int]:
    """A process and everything that descends from it."""
    found = {pid}
    for stat_file in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if parent(int(stat_file.name)) in found:
            found.add(int(stat_file.name))
    return found


def parent(pid: int) -> int:
    """Who started it; 0 when it is gone."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def runs(pid: int) -> bool:
    """Whether a process is there; a zombie that nobody has buried yet is not."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return bool(fields) and fields[0] != "Z"


def read(path: str) -> str:
    """A file of /proc, empty when its process is gone."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
