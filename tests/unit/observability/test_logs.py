"""A log event is one line of JSON that machines can rely on and that gives no secret away."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from service.observability import logs, redaction

LUHN_VALID = "4242424242424242"
Read = Callable[[], list[dict[str, Any]]]
log = logging.getLogger("service.test")


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Read]:
    """Configure this process's logs to a file; reads the events written so far."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level, sys.excepthook, threading.excepthook)
    path = tmp_path / "events.jsonl"
    fileno = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    logs.configure("INFO", environment="test", instance="box-1", fileno=fileno)
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    root.handlers, level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    logging.captureWarnings(False)
    os.close(fileno)


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    secret = "c4n@ry/with:signs"
    logs.redact([secret])
    yield secret
    redaction._registered.clear()
    logs.redact([])


def test_an_event_is_its_name_its_fields_and_where_it_comes_from(events: Read):
    log.info("payment.unknown", extra={"payment_id": "pay_1", "provider_ms": 5000})

    (event,) = events()
    assert event["event"] == "payment.unknown"
    assert (event["payment_id"], event["provider_ms"]) == ("pay_1", 5000)
    assert (event["service"], event["environment"], event["instance"]) == (
        *("holdfast", "test"),
        "box-1",
    )
    assert (event["level"], event["logger"], event["pid"]) == ("INFO", "service.test", os.getpid())
    moment = datetime.fromisoformat(event["timestamp"])
    assert event["timestamp"].endswith("Z")
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


def test_bound_fields_are_in_every_event_of_the_block_only(events: Read):
    with logs.bind(request_id="req_1"):
        with logs.bind(payment_id="pay_1"):
            log.info("inner")
        log.info("outer")
    thread = threading.Thread(target=log.info, args=("elsewhere",))
    thread.start()
    thread.join()

    inner, outer, elsewhere = events()
    assert (inner["request_id"], inner["payment_id"]) == ("req_1", "pay_1")
    assert outer["request_id"] == "req_1"
    assert "payment_id" not in outer
    assert "request_id" not in elsewhere


def test_extra_field_cannot_replace_a_standard_field(events: Read):
    log.info("real", extra={"event": "forged", "service": "forged", "timestamp": "forged"})

    (event,) = events()
    assert event["event"] == "real"
    assert event["service"] == "holdfast"
    assert event["event_"] == event["service_"] == event["timestamp_"] == "forged"


def test_text_from_outside_cannot_begin_a_line_of_its_own(events: Read):
    forged = 'x"}\n{"event": "payment.succeeded"}\r\n\u2028{"event": "forged"}'

    log.info("request.refused", extra={"path": forged, forged: 1})
    log.info(forged)

    first, second = events()
    assert first["path"] == forged
    assert second["event"] == forged


def test_an_error_is_told_with_all_its_causes(events: Read):
    try:
        try:
            raise TimeoutError("the socket was cut")
        except TimeoutError as error:
            raise ConnectionError("HTTPSConnectionPool timeout") from error
    except ConnectionError:
        log.exception("provider.failed")

    (event,) = events()
    assert event["exception"] == [
        {"class": "ConnectionError", "message": "HTTPSConnectionPool timeout"},
        {"class": "TimeoutError", "message": "the socket was cut"},
    ]
    assert "direct cause" in event["traceback"]
    assert "exc_info" not in event


@pytest.mark.parametrize(
    "secret",
    [
        *("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "sk_test_4eC39HqLyjWDarjtT1zdp7dc"),
        *("rk_live_4eC39HqLyjWDarjtT1zdp7dc", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        *("hf_test_k1_0123456789abcdef", "hf_live_k1_0123456789abcdef"),
        *("Bearer abc.def.ghi", "Basic dXNlcjpwYXNz", "Authorization: Custom-credential"),
        *("postgresql://app:hunter2@db/x", "https://user:hunter2@proxy", "password=hunter2"),
        "pi_1_secret_4eC39HqLyjWDarjtT1",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIabc\n-----END EC PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(events: Read, secret: str):
    hidden = secret.split("_")[-1].split(":")[-1].split("=")[-1].split("\n")[-2:][0].split()[-1]
    hidden = hidden.split("@")[0]
    text = f"before {secret} after"

    log.info(text, extra={"detail": text, "nested": {"list": [text], text: 1}})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")

    written = json.dumps(events())
    assert hidden not in written
    assert "before" in written
    assert "after" in written


def test_a_registered_secret_is_never_written_in_any_form(events: Read, canary: str):
    class Bearer:
        def __str__(self) -> str:
            return f"Bearer of {canary}"

    log.info(
        "a %s",
        canary,
        extra={"url": f"x/{quote(canary, safe='')}/y", "object": Bearer(), "repr": repr([canary])},
    )
    with logs.bind(request_id=canary):
        log.warning("b", stack_info=True)
    try:
        raise RuntimeError(canary)
    except RuntimeError:
        log.exception("c")

    written = json.dumps(events())
    assert len(events()) == 3
    assert canary not in written
    assert quote(canary, safe="") not in written
    assert "[redacted]" in written


def test_value_under_a_secrets_name_is_always_hidden(events: Read):
    headers = {"Authorization": "x", "Cookie": "y", "Stripe-Signature": "z", "Accept": "kept"}

    log.info("request", extra={"headers": headers, "api_key": "w", "idempotency_key": "kept"})

    (event,) = events()
    assert [*event["headers"].values()] == ["[redacted]"] * 3 + ["kept"]
    assert (event["api_key"], event["idempotency_key"]) == ("[redacted]", "kept")


@pytest.mark.parametrize(
    "text",
    [
        *(LUHN_VALID, "4242 4242 4242 4242", "4242-4242-4242-4242", "378282246310005"),
        *("card4242424242424242x", "12 4242 4242 4242 4242", "4242.4242.4242.4242"),
        *("6011 0009 9013 9424 12", "30569309025904"),
    ],
)
def test_card_number_is_hidden_in_text_numbers_and_errors(events: Read, text: str):
    log.info("of %s!", text, extra={"reference": text, "deep": [{"a": text}]})
    try:
        int(f"x{text}")
    except ValueError:
        log.exception("failed")
    log.info("number", extra={"amount": int(LUHN_VALID)})

    written = json.dumps(events())
    assert text not in written
    assert LUHN_VALID not in written


@pytest.mark.parametrize(
    "text",
    [
        *("pay_01934242424242424242aabbccddeeff", "01934242-4242-7242-8242-424242424242"),
        *("4242424242424241", "2026-11-24T04:03:47.123456Z", "424242424242", "1764000000"),
    ],
)
def test_ids_and_other_numbers_stay_readable(events: Read, text: str):
    log.info("kept", extra={"field": text})

    assert events()[0]["field"] == text


def test_event_that_cannot_be_written_is_replaced_silently(events: Read):
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    # pytest's own handler does raise.
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if isinstance(one, logs.LineHandler)]

    log.info("first %d", "not a number")
    log.info("second", extra={"object": Hostile()})
    loop: list[Any] = []
    loop.append(loop)
    log.info("third", extra={"loop": loop, "nan": float("nan"), "many": list(range(1000))})

    first, second, third = events()
    assert (first["event"], first["log_error"]) == ("first %d", "TypeError")
    assert (second["event"], second["log_error"]) == ("second", "RuntimeError")
    assert third["nan"] == "nan"
    assert len(third["many"]) < 1000


def test_a_huge_field_is_cut(events: Read):
    log.info("huge", extra={"body": "x" * 1_000_000})

    assert len(events()[0]["body"]) < 20_000


def test_a_closed_output_stops_nobody():
    reading, writing = os.pipe()
    os.close(reading)
    handler = logs.LineHandler(writing)
    handler.setFormatter(logs.EventFormatter(environment="test", instance="box-1"))

    with contextlib.closing(os.fdopen(writing, "wb")):
        handler.handle(log.makeRecord("x", logging.INFO, __file__, 1, "lost", (), None))


def test_a_thread_that_dies_says_so(events: Read):
    thread = threading.Thread(target=lambda: 1 / 0, name="sampler")

    thread.start()
    thread.join()

    (event,) = events()
    assert (event["event"], event["thread_name"]) == ("thread.died", "sampler")
    assert event["exception"][0]["class"] == "ZeroDivisionError"


def test_gunicorn_logs_in_the_same_words():
    program = (
        "from gunicorn.config import Config; from gunicorn.glogging import Logger\n"
        "from service.observability.logs import gunicorn_logconfig_dict\n"
        "config = Config()\n"
        "wanted = gunicorn_logconfig_dict('INFO', environment='test', instance='box-1')\n"
        "config.set('logconfig_dict', wanted)\n"
        "Logger(config).info('Booting worker with pid: %s', 7)\n"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    (line,) = answer.stdout.splitlines()
    event = json.loads(line)
    assert (event["event"], event["logger"]) == ("Booting worker with pid: 7", "gunicorn.error")
    assert set(event) == logs._FIXED
    assert answer.stderr == ""
