"""The provider hangs for 20 s under 50 payments a second: the view of callers, readers and both books.

    python -m tests.bench.bench_outage [--rate 50] [--hung-s 20]

Prints the figures of the outage and of the recovery; the run is bounded.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from tests.support.stack.running_stack import RunningStack, running_stack, wait_for

HEALTHY_S = 10.0
RECOVERY_S = 20.0
WARM_UP = "warm-up"
# A dead provider answers no call, not even those that move no money.
EVERYTHING = ["create", "confirm", "capture", "cancel", "refund", "retrieve", "list"]


@dataclass(frozen=True)
class Answer:
    """One call from its caller's view; times in seconds since the run began."""

    kind: str
    at_s: float
    took_s: float
    status: int
    payment_status: str = ""
    reference: str = ""


class Load:
    """Open-loop load: each call at its time, independent of earlier results."""

    def __init__(self, local_stack: RunningStack, began_s: float) -> None:
        self._local_stack = local_stack
        self.began_s = began_s
        self._local = threading.local()
        self.answers: list[Answer] = []

    def pay(self) -> None:
        reference = str(uuid4())
        body = {
            "amount": 2599,
            "currency": "usd",
            "payment_method": "pm_card_visa",
            "reference": reference,
        }
        headers = {"Idempotency-Key": reference, "Content-Type": "application/json"}
        self._call("pay", "POST", "/v1/payments", json.dumps(body), headers, reference)

    def read(self) -> None:
        self._call("get", "GET", "/v1/payments?limit=1", None, {}, "")

    def check(self) -> None:
        self._call("healthz", "GET", "/healthz", None, {}, "")

    def _call(
        self,
        kind: str,
        method: str,
        path: str,
        body: str | None,
        headers: dict[str, str],
        reference: str,
    ) -> None:
        headers = {"Authorization": f"Bearer {self._local_stack.api_key}", **headers}
        at_s = time.monotonic()
        status, document = 0, {}
        for _ in range(2):
            connection = getattr(self._local, "connection", None)
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(
                        urlsplit(self._local_stack.url).netloc, timeout=15
                    )
                    self._local.connection = connection
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                document = json.loads(answer.read() or b"{}")
                status = answer.status
                if answer.will_close:
                    self._local.connection = None
                break
            except (OSError, http.client.HTTPException):
                # A kept connection may be closed by now: repeat on a new one.
                self._local.connection = None
        took_s = time.monotonic() - at_s
        self.answers.append(
            Answer(kind, at_s - self.began_s, took_s, status, document.get("status", ""), reference)
        )


def run(rate: float, hung_s: float) -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        running_stack(Path(home) / "local_stack") as local_stack,
    ):
        for _ in range(20):
            local_stack.pay(reference=WARM_UP)
        total_s = HEALTHY_S + hung_s + RECOVERY_S
        began_s, wall_began = time.monotonic(), datetime.now(UTC)
        load = Load(local_stack, began_s)
        hung = threading.Timer(
            HEALTHY_S, lambda: local_stack.control({"hang": 1}, operations=EVERYTHING)
        )
        healed = threading.Timer(HEALTHY_S + hung_s, lambda: local_stack.control({"ok": 1}))
        hung.start()
        healed.start()
        with ThreadPoolExecutor(300) as executor:
            n = 0
            while time.monotonic() - began_s < total_s:
                executor.submit(load.pay)
                if n % 5 == 0:
                    executor.submit(load.read)
                    executor.submit(load.check)
                n += 1
                time.sleep(max(0.0, began_s + n / rate - time.monotonic()))
        settled_s = _wait_until_settled(local_stack)
        _report(load.answers, hung_s, local_stack, wall_began, settled_s)


def _wait_until_settled(local_stack: RunningStack) -> float:
    began_s = time.monotonic()
    wait_for(
        lambda: (
            not any(
                local_stack.get(f"/v1/payments?status={status}&limit=1").json()["data"]
                for status in ("queued", "processing", "unknown")
            )
        ),
        timeout_s=120,
        every_s=0.5,
    )
    return time.monotonic() - began_s


def _report(
    answers: list[Answer],
    hung_s: float,
    local_stack: RunningStack,
    wall_began: datetime,
    settled_s: float,
) -> None:
    opened = [
        (datetime.fromisoformat(event["timestamp"]) - wall_began).total_seconds()
        for event in local_stack.log_events() + local_stack.log_events("reconciler")
        if event["event"] == "breaker.opened"
    ]
    ended_s = HEALTHY_S + hung_s
    pays = [answer for answer in answers if answer.kind == "pay"]
    slow = [a for a in pays if HEALTHY_S <= a.at_s < ended_s and a.took_s > 4.5]
    opened_at_s = min(opened, default=HEALTHY_S)
    after_open = [a for a in pays if opened_at_s <= a.at_s < ended_s]
    first_success = min(
        (a.at_s + a.took_s - ended_s for a in pays if a.at_s > ended_s and a.status == 201),
        default=None,
    )
    accepted = {a.reference for a in pays if a.status in (201, 202)}
    charges = Counter(movement["reference"] for movement in local_stack.charges())
    del charges[WARM_UP]
    print(f"payments sent                        {len(pays)}")
    print(f"answers by status                    {dict(Counter(a.status for a in pays))}")
    print(f"breaker openings                     {len(opened)}")
    print(f"waited the whole timeout             {len(slow)} ({len(slow) / len(pays):.1%})")
    print(f"after opening: p50, p99 of answers   {_ms(after_open, 50)}, {_ms(after_open, 99)} ms")
    for kind in ("get", "healthz"):
        healthy = [a for a in answers if a.kind == kind and a.at_s < HEALTHY_S]
        during = [a for a in answers if a.kind == kind and HEALTHY_S <= a.at_s < ended_s]
        ratio = _ms(during, 99) / max(_ms(healthy, 99), 0.001)
        print(
            f"{kind:<8} p99 healthy, hung, ratio    "
            f"{_ms(healthy, 99)}, {_ms(during, 99)} ms, {ratio:.2f}"
        )
    print(f"first 201 after the provider is back {first_success and round(first_success, 2)} s")
    print(f"everything settled after the load    {settled_s:.1f} s")
    print(f"accepted, charged once               {sum(charges[r] == 1 for r in accepted)}")
    print(f"accepted, not charged                {sum(charges[r] == 0 for r in accepted)}")
    print(f"charged twice                        {sum(n > 1 for n in charges.values())}")
    print(f"charged, not accepted                {sum(r not in accepted for r in charges)}")
    doubtful = local_stack.metric("holdfast_provider_calls_total", result="unknown")
    print(f"calls that ended in doubt            {doubtful:.0f}")


def _ms(answers: list[Answer], percentile: int) -> float:
    times = sorted(a.took_s for a in answers)
    if len(times) < 2:
        return 0.0
    return round(statistics.quantiles(times, n=100)[percentile - 1] * 1000, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50.0, help="payments a second (50)")
    parser.add_argument("--hung-s", type=float, default=20.0, help="how long it hangs (20)")
    arguments = parser.parse_args()
    run(arguments.rate, arguments.hung_s)


if __name__ == "__main__":
    main()
