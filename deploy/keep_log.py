"""Run a program and copy its output to a bounded file, for an agent that only reads files.

    python deploy/keep_log.py /var/log/holdfast/data-plane.log python -m service serve

The program becomes this process, so signals and the exit status are its own; a child copies. When
the file cannot be written the lines still go to standard output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

# Two files of this size: minutes at full load, and never the end of a small volume.
FILE_BYTES_MAX = 16 * 1024 * 1024
# A pipe's capacity; each line is written with one call, so chunks end at line ends.
PIECE_BYTES = 64 * 1024


def main(path: Path, command: list[str]) -> None:
    """Become `command`; never returns."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        # The program receives the signals; the copier stops at the end of the program's output.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _copy(reader, path)
        os._exit(0)
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    os.execvp(command[0], command)  # noqa: S606


def _copy(reader: int, path: Path) -> None:
    while piece := os.read(reader, PIECE_BYTES):
        for write in (_to_output, lambda text: _to_file(path, text)):
            # A full disk or a closed output loses lines; the program must not wait for it.
            with contextlib.suppress(OSError):
                write(piece)


def _to_output(piece: bytes) -> None:
    while piece:
        piece = piece[os.write(1, piece) :]


def _to_file(path: Path, piece: bytes) -> None:
    """Append, and start a new file when this one is full: the agent follows by the name."""
    with path.open("ab") as file:
        file.write(piece)
        is_full = file.tell() >= FILE_BYTES_MAX
    if is_full:
        path.replace(path.with_suffix(".log.1"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
