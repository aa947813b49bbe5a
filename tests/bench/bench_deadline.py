"""The lateness of calls to a provider that never ends its answer: `python -m tests.bench.bench_deadline`.

One table, a row for each shape of slowness. The aim: at most 20 ms past the deadline at p99.9.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from time import monotonic

from service.providers.http.transport import Transport, TransportError
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_server import Behaviour, certificate, fault_server
from tests.support.processes.slow_peers import SLOW_ANSWERS, SLOW_HANDSHAKES

CALLS = 1000
THREADS = 8
BUDGET_S = 0.1
AIM_MS = 20.0


def main() -> int:
    """Print the table; 1 where a shape misses the aim."""
    print(f"Ends past a deadline of {BUDGET_S * 1000:.0f} ms, {CALLS} calls, {THREADS} at once, ms")
    print(f"  {'':<16} {'p50':>7} {'p99':>7} {'p99.9':>7} {'max':>7}")
    worst_ms = 0.0
    for shape in (*SLOW_ANSWERS, *SLOW_HANDSHAKES):
        late_ms = sorted(lateness_ms(shape))
        p50, p99, p999 = (late_ms[round(share * (CALLS - 1))] for share in (0.5, 0.99, 0.999))
        print(f"  {shape.__name__:<16} {p50:>7.1f} {p99:>7.1f} {p999:>7.1f} {late_ms[-1]:>7.1f}")
        worst_ms = max(worst_ms, p999)
    return int(worst_ms > AIM_MS)


def lateness_ms(shape: Behaviour) -> list[float]:
    with served(shape) as (url, ca_file):
        transport = Transport(
            base_url=url,
            ca_file=ca_file,
            connect_timeout_s=1.0,
            max_connections=THREADS,
            watchdog=Watchdog(),
        )
        with ThreadPoolExecutor(THREADS) as callers:
            late_ms = list(callers.map(lambda _: late_by_ms(transport), range(CALLS)))
        transport.close()
    return late_ms


def late_by_ms(transport: Transport) -> float:
    deadline = Deadline.after(BUDGET_S)
    with contextlib.suppress(TransportError):
        transport.exchange("GET", "/v1/things", headers={}, deadline=deadline)
    return (monotonic() - deadline.at_s) * 1000


@contextlib.contextmanager
def served(shape: Behaviour) -> Iterator[tuple[str, str]]:
    """The address of a slow provider in a separate process, and its CA file."""
    ours, theirs = multiprocessing.Pipe()
    # Not forked: it must share neither the caller's interpreter lock nor its threads.
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(shape, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        process.join(10)


def serve(shape: Behaviour, caller: Connection) -> None:
    with fault_server(shape, handshake=shape in SLOW_ANSWERS) as server:
        caller.send((server.url, str(certificate())))
        caller.recv()


if __name__ == "__main__":
    sys.exit(main())
