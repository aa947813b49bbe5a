"""Properties of the parsers for all inputs: each property raises where it is violated.

`make fuzz` searches bytes that break one, by coverage; `tests/unit/test_fuzz_seeds.py` tries the
seeds, so that a repaired fault does not return.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from time import thread_time
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from urllib3.util import parse_url

from service.errors import HoldfastError, KeyMissing, SignatureInvalid
from service.lab.sandbox import form
from service.lab.sandbox.errors import StripeError
from service.observability.card_numbers import holds_card_number
from service.observability.redaction import clean, clean_text
from service.observability.tracing import Trace
from service.payments.charge.model import fingerprint
from service.payments.events.deliveries import signed_headers
from service.payments.merchants import generate_key, parse_key
from service.providers.base import Charge, Outcome, OutcomeKind, Refund
from service.providers.http.retry_after import parse_retry_after_s
from service.providers.http.transport import ProviderAnswer
from service.providers.http.webhook_sender import refusal_of
from service.providers.stripe import (
    answers as stripe_answers,
)
from service.providers.stripe import (
    charge_answers as stripe_charge_answers,
)
from service.providers.stripe import (
    form as stripe_form,
)
from service.providers.stripe import (
    intents as stripe_intents,
)
from service.providers.stripe import (
    json as stripe_json,
)
from service.providers.stripe.answers import Garbage
from service.providers.stripe.api import metadata_form
from service.providers.stripe.form import Unsendable
from service.settings import Settings, SettingsError
from service.web.api.cursors import parse_cursor
from service.web.api.schemas import CreatePayment, PaymentQuery
from service.web.api.webhooks import check_signature, read_event
from service.web.http.bodies import MAX_DEPTH, parse_object, validated
from service.web.http.header_rules import MAX_FIELD_BYTES, Malformed
from service.web.http.idempotency import parse_idempotency_key
from service.web.http.preferences import LONGEST_WAIT_S, asks_for_async, parse_wait_s
from service.web.ops.diagnostics import understood_accept
from service.web.server.framing import Arrival, Verdict

SECRET = "whsec_of_the_fuzzer"
NOW_S = 1_800_000_000.0
CANARY = "canary-7f3a91c2"
# The largest request, and the time limit of one parser for it: linear parsers need a tenth, also with
# the fuzzer's instrumentation; a quadratic one needs minutes.
LONG_BYTES = 64 * 1024
LONGEST_S = 1.5


def json_body(data: bytes) -> None:
    """A body is one valid object or our own refusal; its meaning does not depend on key order."""
    try:
        parsed = parse_object(data)
    except HoldfastError:
        return
    texts = list(_texts(parsed))
    assert not any(holds_card_number(text) for text in texts)
    assert not any(re.search(r"[\x00-\x1f\x7f]", text) for text in texts)
    assert _depth(parsed) <= MAX_DEPTH
    assert parse_object(json.dumps(parsed).encode()) == parsed
    assert fingerprint("POST", "/x", parsed) == fingerprint("POST", "/x", _turned(parsed))
    try:
        payment = validated(CreatePayment, parsed)
    except HoldfastError:
        return
    assert validated(CreatePayment, payment.model_dump(mode="json")) == payment


def card_numbers(data: bytes) -> None:
    """A card number is detected in any grouping, and none is left in log text."""
    text = data.decode("utf-8", "replace")
    assert not _naked_card_numbers(clean_text(text))
    if len(data) < 20:
        return
    card = _card_number(data[:15])
    marks = (" ", ".", "-", "  ", " – ", ",", "\u200b", "%20", "&nbsp;", "&#32;", "%C2%A0", "=20")
    mark = marks[data[15] % len(marks)]
    size = 1 + data[16] % 8
    grouped = mark.join(card[place : place + size] for place in range(0, len(card), size))
    # The text around it can be part neither of a number nor of one of our ids.
    around = re.sub(r"[\w.\-/]", "", data[17:].decode("utf-8", "replace"))
    whole = f"{around} :{grouped}: {around}"
    assert holds_card_number(whole)
    assert grouped not in clean_text(whole)
    assert card not in json.dumps(clean({"note": [whole], whole: int(card)}))


def idempotency_key(data: bytes) -> None:
    """A key is 1 to 255 visible characters, the same bare and quoted."""
    header = data.decode("latin-1")
    try:
        key = parse_idempotency_key(header)
    except (KeyMissing, HoldfastError):
        return
    assert re.fullmatch(r"[\x21-\x7e]{1,255}", key)
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_idempotency_key(quoted) == key
    assert key.startswith('"') or "," in key or parse_idempotency_key(key) == key


def request_headers(data: bytes) -> None:
    """Prefer, traceparent and an API key are read or ignored, and never raise."""
    header = data.decode("latin-1")
    assert 0.0 <= parse_wait_s(header) <= LONGEST_WAIT_S
    assert asks_for_async(f"wait=1, respond-async; {'x' if header else ''}")
    asks_for_async(header)
    trace = Trace.parse(header)
    if trace is not None:
        assert Trace.parse(trace.traceparent) == trace
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", trace.traceparent)
    parse_key(header)


def api_key(data: bytes) -> None:
    """A change of any character of a key breaks its checksum."""
    key = generate_key("test")
    assert parse_key(key) is not None
    if len(data) < 2:
        return
    place, character = data[0] % len(key), chr(data[1])
    changed = key[:place] + character + key[place + 1 :]
    assert changed == key or parse_key(changed) is None


def signature_in(data: bytes) -> None:
    """A body signed by the provider passes; a body with one changed bit does not."""
    body, where, bit = data[2:], data[:2], 1 << (data[0] & 7 if data else 0)
    stamp = str(int(NOW_S) + int.from_bytes(where, "big") % 601 - 300)
    mac = hmac.new(SECRET.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    header = f"t={stamp},v1={mac}"
    check_signature(body, header, secrets=["another", SECRET], now_s=NOW_S)
    place = int.from_bytes(where, "big")
    if body:
        _refused(_flipped(body, place, bit), header)
    changed = _flipped(header.encode(), 2 + place % (len(header) - 2), bit).decode("latin-1")
    if changed.lower() != header:
        _refused(body, changed)
    _refused(body, data.decode("latin-1"))
    _refused(body, header, now_s=float(stamp) + 301)
    _refused(body, header, now_s=float(stamp) - 301)


def signature_out(data: bytes) -> None:
    """Our webhooks verify by the Standard Webhooks rule, with each of the secrets."""
    secrets = [data[:16] or b"x", b"another"]
    headers = signed_headers(UUID(int=7), data, secrets, now_s=NOW_S)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + data
    versions = dict.fromkeys(headers["webhook-signature"].split(" "))
    for secret in secrets:
        mac = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        assert f"v1,{mac}" in versions


def provider_event(data: bytes) -> None:
    """Any event of the provider yields a few valid names or None."""
    event = read_event(data)
    if event is None:
        return
    for name in ("event_id", "type_", "provider_ref"):
        assert event[name] is None or re.fullmatch(r"[A-Za-z0-9_.\-]{1,255}", event[name])
    assert isinstance(event["payment_id"], UUID | None)
    assert isinstance(event["merchant_id"], UUID | None)


def provider_answer(data: bytes) -> None:
    """An answer is an Outcome or Garbage; success only for the requested amount."""
    status = 200 + (data[0] if data else 0) * 2
    answer = ProviderAnswer(status, data[1:], {"Retry-After": data[1:12].decode("latin-1")}, 1)
    refused = stripe_answers.of_error(answer, is_first=True)
    assert refused.kind is not OutcomeKind.SUCCEEDED
    _is_storable(refused)
    assert 0.0 <= (refused.retry_after_s or 0.0) <= stripe_answers.RETRY_AFTER_MAX_S
    try:
        found = stripe_answers.parse(answer)
        outcomes = [
            stripe_intents.of_answer(answer, CHARGE),
            stripe_intents.of_captured(found, CHARGE, CHARGE.amount_minor),
            stripe_charge_answers.of_answer(answer, CHARGE),
            stripe_charge_answers.of_captured(found, CHARGE, CHARGE.amount_minor),
        ]
    except Garbage:
        return
    for outcome in outcomes:
        _is_no_lie(outcome, found, CHARGE.amount_minor)
        _is_storable(outcome)
    for made in (
        stripe_intents.of_prepared(found, CHARGE),
        stripe_charge_answers.of_released(found, CHARGE),
    ):
        assert made.kind is not OutcomeKind.SUCCEEDED
    for field in ("payment_intent", "charge"):
        outcome = stripe_answers.of_refund(found, REFUND, field)
        _is_no_lie(outcome, found, REFUND.amount_minor)
        _is_storable(outcome)
    for read in (stripe_intents.of_listed, stripe_charge_answers.of_listed):
        try:
            listed = read(found)
        except Garbage:
            continue
        assert listed is None or listed.created_at.tzinfo is UTC


def provider_form(data: bytes) -> None:
    """A caller's text is refused, or arrives unchanged at the provider."""
    texts = data.decode("utf-8", "surrogateescape").split("\n")
    metadata = dict(zip(texts[1::2], texts[2::2], strict=False))
    charge = replace(CHARGE, metadata=metadata, payment_method=texts[0], reference=texts[-1])
    written = {"payment_method": charge.payment_method, **metadata_form(charge)}
    try:
        stripe_form.check("/v1/payment_intents", written)
    except Unsendable:
        return
    arrived = form.parse(urlencode(written))
    ours = {"payment_id": charge.payment_id, "merchant_id": charge.merchant_id}
    assert arrived.pop("metadata") == {**metadata, "reference": charge.reference, **ours}
    assert arrived == {"payment_method": charge.payment_method}


def sandbox_form(data: bytes) -> None:
    """The sandbox reads a form or refuses it with Stripe's error text."""
    try:
        read = form.parse(data.decode("latin-1"))
    except StripeError:
        return
    assert all(isinstance(value, str | dict | list) for value in read.values())
    for reader in (form.integer, form.metadata, form.time_range, form.strings):
        for name, value in read.items():
            try:
                reader(name, value)
            except StripeError:
                continue


def incoming_request(data: bytes) -> None:
    """A whole request is valid for gunicorn's parser too, with the same result for any pieces."""
    whole, pieces = Arrival(), Arrival()
    verdict = whole.feed(data)
    step, seen = 1 + len(data) % 7, Verdict.WAIT
    for place in range(0, len(data), step):
        now = pieces.feed(data[place : place + step])
        seen = now if now is not Verdict.WAIT else seen
        if now in (Verdict.WHOLE, Verdict.REFUSE):
            break
    if verdict is not Verdict.WHOLE:
        return
    assert seen is Verdict.WHOLE
    request = whole.take()
    assert pieces.take() == request
    try:
        parser = RequestParser(Config(), iter([request]), ("127.0.0.1", 1))
        message = next(parser)
        assert len(message.body.read()) == message.body.reader.length + len(
            request.partition(b"\r\n\r\n")[2]
        )
        assert parser.unreader.take_buffered() == b""
    except NoMoreData:
        raise AssertionError("gunicorn waits for more") from None
    except ParseException:
        # Malformed: the parser refuses it at once, and the answer is a 4xx.
        return


def settings(data: bytes) -> None:
    """Settings are read or refused by name, and no refusal repeats a secret."""
    texts = data.decode("utf-8", "replace").split("\n")
    names = [
        *("HOLDFAST_BIND", "HOLDFAST_WEB_WORKERS", "HOLDFAST_DRAIN_S", "HOLDFAST_ENV"),
        *("HOLDFAST_DB_PREPARED", "HOLDFAST_PROVIDER_CONCURRENCY_RATIO", "HOLDFAST_OPS_BIND"),
    ]
    environ = {name: text for name, text in zip(names, texts, strict=False) if "\x00" not in text}
    environ |= {
        "STRIPE_API_KEY": f"sk_live_{CANARY}",
        "DATABASE_URL": f"postgresql://u:{CANARY}@h/d",
    }
    try:
        read = Settings.from_environ(environ)
    except SettingsError as refused:
        told = str(refused)
    else:
        told = repr(read)
        assert 0 <= int(read.bind.rpartition(":")[2]) <= 65535
    assert CANARY not in told


def webhook_address(data: bytes) -> None:
    """No accepted address is a number that resolves into a private network."""
    url = data.decode("latin-1")
    for allow_private in (True, False):
        reason = refusal_of(url, allow_private=allow_private)
        assert reason is None or "\n" not in reason
    if refusal_of(url, allow_private=False) is not None:
        return
    # The library that connects reads the same host and port.
    assert (parse_url(url).host or "").strip("[]") == urlsplit(url).hostname, url
    host = re.sub(r"[:/?].*$", "", re.sub(r"^https://", "", url, flags=re.IGNORECASE))
    try:
        # Reads the same text as the resolver: 0x7f.1, 0177.0.0.1 and 2130706433 too.
        packed = socket.inet_aton(host)
    except OSError:
        return
    assert ip_address(packed).is_global


def list_query(data: bytes) -> None:
    """A validated query can be sent to the database."""
    texts = data.decode("utf-8", "replace").split("\n")
    names = ("cursor", "created_gte", "reference", "limit", "status")
    values = {name: text for name, text in zip(names, texts, strict=False) if text}
    try:
        query = validated(PaymentQuery, values)
    except HoldfastError:
        return
    assert "\x00" not in (query.reference or "")
    place = parse_cursor(query.cursor)
    assert place is None or isinstance(place[0], datetime)
    assert query.created_gte is None or query.created_gte.utcoffset() is not None


def time_of_parsers(data: bytes) -> None:
    """Every parser takes linear time, for any repeated text."""
    piece = data[:64]
    if not piece:
        return
    long = (piece * (LONG_BYTES // len(piece) + 1))[:LONG_BYTES]
    header = long[: MAX_FIELD_BYTES - 64].decode("latin-1")
    text = long.decode("utf-8", "replace")
    reads: tuple[Callable[[], object], ...] = (
        *(lambda: parse_object(long), lambda: parse_object(b'{"a": ["' + long + b'"]}')),
        *(lambda: holds_card_number(text), lambda: clean_text(text), lambda: clean({text: [text]})),
        *(lambda: read_event(long), lambda: Arrival().feed(long)),
        lambda: stripe_json.without_secrets(text[: stripe_json.NEXT_ACTION_CHARACTERS_MAX]),
        *(lambda: parse_idempotency_key(header), lambda: parse_idempotency_key(f'"{header}"')),
        *(lambda: parse_wait_s(f"wait{header}"), lambda: asks_for_async(header)),
        *(
            lambda: understood_accept(header),
            lambda: Trace.parse(header),
            lambda: parse_key(header),
        ),
        lambda: check_signature(long, f"t=1,{header}", secrets=["x"], now_s=NOW_S),
        lambda: parse_retry_after_s(header, now_s=NOW_S, longest_s=1.0),
        lambda: refusal_of(f"https://{header}", allow_private=False),
        lambda: validated(PaymentQuery, {"cursor": header, "limit": header}),
        lambda: fingerprint("POST", "/x", {text: text}),
    )
    for read in reads:
        began_s = thread_time()
        with contextlib.suppress(HoldfastError, Malformed):
            read()
        assert thread_time() - began_s < LONGEST_S, header[:64]


CHARGE = Charge("pay_1", "m", 1500, "usd", "pm_card_visa", "key", provider_ref=None)
REFUND = Refund("ref_1", "pay_1", "pi_1", 700, "usd", "key")
PROPERTIES: dict[str, Callable[[bytes], None]] = {
    of.__name__: of
    for of in (
        *(json_body, card_numbers, idempotency_key, request_headers, api_key, signature_in),
        *(
            signature_out,
            provider_event,
            provider_answer,
            provider_form,
            sandbox_form,
            incoming_request,
        ),
        *(settings, webhook_address, list_query, time_of_parsers),
    )
}


# --- Oracles, independent of the code that they judge ----------------------------------------


def _is_no_lie(outcome: Outcome, found: Any, amount_minor: int) -> None:
    if outcome.kind is OutcomeKind.SUCCEEDED:
        assert (found["amount"], found["currency"]) == (amount_minor, "usd")
        assert 0 <= outcome.amount_received <= amount_minor


def _is_storable(outcome: Outcome) -> None:
    """Whether PostgreSQL's text, jsonb and bigint accept the value."""
    told = [dict(outcome.next_action or {}), outcome.provider_ref, outcome.error_detail]
    if outcome.decline is not None:
        told.append(outcome.decline.document())
    text = json.dumps(told, allow_nan=False, ensure_ascii=False)
    assert not re.search(r"[\x00\ud800-\udfff]|\\u0000", text)
    assert len(text) < LONG_BYTES
    assert 0 <= outcome.amount_received < 2**63
    assert 0 <= outcome.amount_capturable < 2**63


def _refused(body: bytes, header: str, *, now_s: float = NOW_S) -> None:
    try:
        check_signature(body, header, secrets=["another", SECRET], now_s=now_s)
    except SignatureInvalid:
        return
    raise AssertionError(f"accepted: {header!r}")


def _flipped(text: bytes, place: int, bit: int) -> bytes:
    place %= len(text)
    return text[:place] + bytes([text[place] ^ bit]) + text[place + 1 :]


def _card_number(seed: bytes) -> str:
    """Sixteen digits with a card's prefix and a valid Luhn check."""
    prefix = ("4", "51", "55", "2221", "2720", "6011", "65", "3528", "62", "50")[seed[0] % 10]
    digits = [*map(int, prefix), *(byte % 10 for byte in seed[1:15])][:15]
    doubled = [digit * 2 if place % 2 == 0 else digit for place, digit in enumerate(digits)]
    total = sum(digit - 9 if digit > 9 else digit for digit in doubled)
    return "".join(map(str, [*digits, -total % 10]))


def _naked_card_numbers(text: str) -> list[str]:
    """Runs of 16 plain digits, Visa's or Mastercard's, that pass Luhn and are in no identifier."""
    text = re.sub(r"(?i)[0-9a-f-]{24,}", "x", text)
    runs = re.findall(r"(?<![0-9])(?:4|5[1-5])[0-9]{14,15}(?![0-9])", text)
    return [run for run in runs if len(run) == 16 and _passes_luhn(run)]


def _passes_luhn(run: str) -> bool:
    digits = [int(digit) for digit in reversed(run)]
    return (
        sum(sum(divmod(2 * d, 10)) if place % 2 else d for place, d in enumerate(digits)) % 10 == 0
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _turned(value: Any) -> Any:
    """The same with every object's keys in the other order."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(inner) for inner in value] if isinstance(value, list) else value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(one) for one in inner), default=0)
