"""Logs: one JSON object a line on standard output, for machines first and `jq` second.

An event is a name and fields: `log.info("payment.unknown", extra={"payment_id": ...})`. The fields
of a request or a payment are bound once and added to every event of its thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from service.observability.metrics import slots
from service.observability.redaction import clean, clean_text, redact

__all__ = ["bind", "bound", "configure", "gunicorn_logconfig_dict", "rebind", "redact"]

SERVICE = "holdfast"
# These log each connection and each retry at DEBUG and INFO, with addresses.
_CHATTY = ("urllib3", "werkzeug", "backoff")
# A chain of causes longer than this is a loop.
CHAIN_LIMIT = 8


class _Context:
    """The bound fields. Redacted at the first event that uses them: most requests log nothing."""

    __slots__ = ("_cleaned", "fields")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self._cleaned: Mapping[str, Any] | None = None

    def cleaned(self) -> Mapping[str, Any]:
        if self._cleaned is None:
            self._cleaned = {name: clean(value, name=name) for name, value in self.fields.items()}
        return self._cleaned


_NOTHING_BOUND = _Context({})
_context: ContextVar[_Context] = ContextVar("log_context", default=_NOTHING_BOUND)
_FIXED = frozenset(
    ("timestamp", "level", "event", "logger", "service", "environment", "instance", "worker", "pid")
)
_RESERVED = frozenset(RESERVED_ATTRS) | {"message", "asctime", "taskName"}


def configure(level: str, *, environment: str, instance: str, fileno: int = 1) -> None:
    """Send every event of this process to `fileno` as JSON; may be called again (after a fork)."""
    handler = LineHandler(fileno)
    handler.setFormatter(EventFormatter(environment=environment, instance=instance))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("gunicorn.error", "gunicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread_death


def gunicorn_logconfig_dict(
    level: str, *, environment: str, instance: str, fileno: int = 1
) -> dict[str, Any]:
    """The `logconfig_dict` setting of gunicorn, so that its loggers use our format."""
    own = {"level": level, "handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "event": {"()": EventFormatter, "environment": environment, "instance": instance}
        },
        "handlers": {"events": {"()": LineHandler, "fileno": fileno, "formatter": "event"}},
        "root": {"level": level, "handlers": ["events"]},
        "loggers": {
            "gunicorn.error": own,
            "gunicorn.access": own,
            **{name: {"level": "WARNING"} for name in _CHATTY},
        },
    }


@contextlib.contextmanager
def bind(**context: Any) -> Iterator[None]:
    """Add these fields to every event logged within the block, in this thread."""
    token = _context.set(_Context({**_context.get().fields, **context}))
    try:
        yield
    finally:
        _context.reset(token)


def rebind(**context: Any) -> None:
    """Add or replace fields until the end of the innermost `bind` block of this thread."""
    _context.set(_Context({**_context.get().fields, **context}))


def bound() -> Mapping[str, Any]:
    """The fields bound now: for another thread, or for the trace id of an exemplar."""
    return _context.get().fields


class EventFormatter(JsonFormatter):
    """Turns a record into one line of JSON. Never raises: a bad event is replaced by its name."""

    def __init__(self, *, environment: str, instance: str) -> None:
        super().__init__(json_ensure_ascii=True)
        self._environment = environment
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        # An object in `extra` may raise anything from __str__; a log event must not stop a payment.
        except Exception as error:  # noqa: BLE001
            fields = self._fixed_fields(record, clean_text(str(record.msg)))
            fields["log_error"] = type(error).__name__
            return self.serialize_log_record(fields)

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        log_data.update(self._fixed_fields(record, clean_text(record.getMessage())))
        for name, value in _context.get().cleaned().items():
            log_data.setdefault(name, value)
        for name, value in record.__dict__.items():
            if name in _RESERVED:
                continue
            # An extra must not replace one of the fields that machines rely on.
            free_name = f"{name}_" if name in _FIXED else name
            log_data[free_name] = clean(value, name=name)
        if record.exc_info and record.exc_info[1] is not None:
            log_data["exception"] = _chain(record.exc_info[1])
        for name in ("exc_info", "stack_info"):
            if message_dict.get(name):
                log_data["traceback"] = clean_text(str(message_dict[name]))

    def _fixed_fields(self, record: logging.LogRecord, event: str) -> dict[str, Any]:
        moment = datetime.fromtimestamp(record.created, UTC)
        return {
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "event": event,
            "logger": record.name,
            "service": SERVICE,
            "environment": self._environment,
            "instance": self._instance,
            "worker": slots.slot() or f"pid-{os.getpid()}",
            "pid": os.getpid(),
        }


class LineHandler(logging.Handler):
    """Writes each event with one system call, so that lines of several processes never mix."""

    def __init__(self, fileno: int) -> None:
        super().__init__()
        self._fileno = fileno

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode()
        # A closed pipe or a full disk loses events; it must not lose payments.
        with contextlib.suppress(OSError):
            while line:
                line = line[os.write(self._fileno, line) :]


def _chain(error: BaseException) -> list[dict[str, str]]:
    """The error and its causes, outermost first."""
    chain: list[dict[str, str]] = []
    current: BaseException | None = error
    while current is not None and len(chain) < CHAIN_LIMIT:
        kind = type(current)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        chain.append({"class": name, "message": clean_text(str(current))})
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return chain


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("process.died", exc_info=(kind, error, traceback))


def _log_thread_death(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None or issubclass(arguments.exc_type, SystemExit):
        return
    logging.getLogger(__name__).critical(
        "thread.died",
        extra={"thread_name": arguments.thread.name if arguments.thread else None},
        exc_info=(arguments.exc_type, arguments.exc_value, arguments.exc_traceback),
    )
