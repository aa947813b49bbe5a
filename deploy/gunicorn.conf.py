"""gunicorn for the data plane: `gunicorn -c deploy/gunicorn.conf.py`. All values are settings."""

from __future__ import annotations

import math
import signal
import socket
import struct
from typing import Any

from service.observability import logs
from service.observability.metrics import slots
from service.settings import Settings

_settings = Settings.from_environ()
# Before any import of the metrics: metrics that exist at the fork stay private to the master.
slots.use_directory(_settings.metrics_path)

from service.process.garbage import kept_imports  # noqa: E402

# Each worker then forks with all modules instead of importing them: half a second of a processor.
with kept_imports():
    import service.app.data_plane  # noqa: F401
from service.payments.charge.store import RECORD_TIMEOUT_S  # noqa: E402
from service.web.server import lifecycle  # noqa: E402
from service.web.server.gunicorn_log import EventLogger  # noqa: E402
from service.web.server.worker import PaymentWorker  # noqa: E402

wsgi_app = "wsgi:app"
bind = _settings.bind
workers = _settings.web_workers
threads = _settings.web_threads

# A write that waits longer for a thread could not charge, record and answer within its budget.
_queue_wait_s = max(
    0.1,
    (_settings.request_timeout_ms - _settings.provider_timeout_ms) / 1000 - RECORD_TIMEOUT_S,
)
worker_class = PaymentWorker.configured(queue_wait_s=_queue_wait_s, drain_s=_settings.drain_s)
# Connections a worker holds; beyond it the idlest one is closed.
worker_connections = 512
backlog = 1024
# Longer than the idle time of common clients and balancers would be 60 s and more; a client that
# comes back later opens a new connection.
keepalive = 20
# The master counts from SIGTERM, and workers go on accepting while they drain.
graceful_timeout = math.ceil(_settings.drain_s + _settings.graceful_stop_s)
# Only for a main loop that hangs; a request's own end is its deadline.
timeout = 30
# A leak of a kilobyte a request stays under 100 MB; jitter keeps workers from restarting together.
max_requests = 100_000
max_requests_jitter = 20_000

limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
# A read-only container cannot hold its socket, and no part uses it.
control_socket_disable = True
# The client's headers about addresses and schemes are not trusted.
forwarded_allow_ips = ""

logger_class = EventLogger
logconfig_dict = logs.gunicorn_logconfig_dict(
    _settings.log_level, environment=_settings.env, instance=socket.gethostname()
)

# A peer that stops reading or writing releases the thread after this time.
_SOCKET_WAIT_S = 5


def when_ready(server: Any) -> None:
    """Bound every read and write on accepted connections, and note why the instance will end."""
    wait = struct.pack("ll", _SOCKET_WAIT_S, 0)
    for listener in server.LISTENERS:
        # Accepted sockets inherit these from their listener.
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)

    def stop(signal_number: int, frame: Any) -> None:
        lifecycle.begin_stop()
        server.signal(signal_number, frame)

    signal.signal(signal.SIGTERM, stop)


def post_fork(server: Any, worker: Any) -> None:
    """Take this worker's slot for metrics: its name is `web-0`, `web-1` and so on."""
    slots.claim("web")
