"""`python -m tests.support.processes.localstripe_server`: localstripe on loopback and a free port, which it says."""

from __future__ import annotations

import os
import socket
import sys
import threading

from localstripe import resources

# By default it binds all interfaces and keeps its state in one shared file.
resources.Store.dump_to_disk = lambda self: None


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    from aiohttp import web
    from localstripe.server import app

    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    web.run_app(app, sock=listener, access_log=None, print=None)
