"""gunicorn for the ops plane: `gunicorn -c deploy/gunicorn.ops.conf.py`. All values are settings."""

from __future__ import annotations

import math
import socket
from typing import Any

from service.observability import logs
from service.observability.metrics import slots
from service.settings import Settings

_settings = Settings.from_environ()
_settings.require_ops_bind()
# Before any import of the metrics: metrics that exist at the fork stay private to the master.
slots.use_directory(_settings.metrics_path)

from service.process.garbage import kept_imports  # noqa: E402

# A worker that is replaced forks with all modules instead of importing them.
with kept_imports():
    import service.app.ops_plane  # noqa: F401
from service.web.server.gunicorn_log import EventLogger  # noqa: E402
from service.web.server.worker import PaymentWorker  # noqa: E402

wsgi_app = "wsgi:ops"
bind = _settings.ops_bind
# One process: drills and caches live in it. People and scrapers are few.
workers = 1
# As on the data plane: a client that sends half a request occupies no thread.
worker_class = PaymentWorker.configured(queue_wait_s=10.0, drain_s=_settings.drain_s)
threads = 8
graceful_timeout = math.ceil(_settings.graceful_stop_s)
timeout = 30
keepalive = 20

limit_request_line = 4094
limit_request_fields = 64
control_socket_disable = True
forwarded_allow_ips = ""

logger_class = EventLogger
logconfig_dict = logs.gunicorn_logconfig_dict(
    _settings.log_level, environment=_settings.env, instance=socket.gethostname()
)


def post_fork(server: Any, worker: Any) -> None:
    """Take a slot for metrics; numbers of the ops plane do not mix with the data plane's."""
    slots.claim("ops")
