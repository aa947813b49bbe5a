"""Gzip for the files that a page loads, each compressed once."""

from __future__ import annotations

import gzip
from functools import lru_cache

from flask import Response, request

# More than the files of all pages together.
FILES_MAX = 64


def compress_file(answer: Response) -> None:
    """Send a file's answer as gzip if the browser accepts it; other answers are unchanged."""
    answer.vary.add("Accept-Encoding")
    if answer.status_code != 200 or not request.accept_encodings.quality("gzip"):
        return
    answer.direct_passthrough = False
    answer.set_data(_compressed(answer.get_data()))
    answer.headers["Content-Encoding"] = "gzip"


@lru_cache(maxsize=FILES_MAX)
def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)
