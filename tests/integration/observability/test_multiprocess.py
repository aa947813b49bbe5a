"""Real processes write, die and start again; what is read stays exact and cheap."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics import exposition, parser

from service.observability.metrics.registry import SharedRegistry, read_samples
from service.observability.metrics.slot_file import SlotFile, read_file
from service.observability.metrics.slots import live_slots

# A minimal process of the service: it takes a slot, prints it, then executes each line.
PROCESS = """
import sys
from service.observability.metrics import catalogue as metrics, slots
print(slots.claim(sys.argv[1]), flush=True)
bound = {}
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Process:
    """One process that counts."""

    def __init__(self, directory: Path, role: str = "web") -> None:
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
        self._popen = subprocess.Popen(
            [sys.executable, "-c", PROCESS, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
        )
        self.slot = self._answer()

    def run(self, line: str) -> None:
        assert self._popen.stdin
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()
        assert self._answer() == "done"

    def kill(self) -> None:
        self._popen.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        assert self._popen.stdin
        assert self._popen.stdout
        self._popen.stdin.close()
        self._popen.wait(60)
        self._popen.stdout.close()

    def _answer(self) -> str:
        assert self._popen.stdout
        return self._popen.stdout.readline().strip()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started = []

    def start(role: str = "web") -> Process:
        process = Process(tmp_path, role)
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def value(directory: Path, name: str, **labels: str) -> float | None:
    samples = read_samples(SharedRegistry(directory))
    return samples.get((f"holdfast_{name}", tuple(sorted(labels.items()))))


def test_next_worker_continues_a_killed_workers_slot(tmp_path, start):
    first = start()
    first.run("metrics.payments_total.labels('stripe', 'succeeded').inc(3)")
    first.run("metrics.db_pool_wait_seconds.observe(0.2)")

    first.kill()
    after_death = value(tmp_path, "payments_total", provider="stripe", outcome="succeeded")
    second = start()
    second.run("metrics.payments_total.labels('stripe', 'succeeded').inc(4)")
    second.run("metrics.db_pool_wait_seconds.observe(0.2)")

    assert second.slot == first.slot == "web-0"
    assert after_death == 3
    assert value(tmp_path, "payments_total", provider="stripe", outcome="succeeded") == 7
    assert value(tmp_path, "db_pool_wait_seconds_count") == 2
    assert value(tmp_path, "db_pool_wait_seconds_bucket", le="0.1") == 0
    assert value(tmp_path, "db_pool_wait_seconds_bucket", le="0.25") == 2


def test_dead_workers_gauges_end_with_it(tmp_path, start):
    lasting, killed = start(), start()
    for process in (lasting, killed):
        process.run("metrics.http_requests_in_flight.inc(5)")
        process.run("metrics.db_pool_in_use.set(2)")
    both = value(tmp_path, "http_requests_in_flight")

    killed.kill()
    one = value(tmp_path, "http_requests_in_flight")
    dead_pool = value(tmp_path, "db_pool_in_use", worker="web-1")
    start().run("metrics.http_requests_in_flight.inc()")

    assert (both, one, dead_pool) == (10, 5, None)
    assert value(tmp_path, "http_requests_in_flight") == 6
    assert value(tmp_path, "db_pool_in_use", worker="web-0") == 2
    assert value(tmp_path, "db_pool_in_use", worker="web-1") == 0


def test_two_living_processes_never_share_a_slot(start):
    old_generation = [start(), start()]

    # As in a reload: the new workers start before the old ones end.
    new_generation = [start(), start()]
    roles = [start("reconciler"), start("ops")]

    slots = [process.slot for process in (*old_generation, *new_generation, *roles)]
    assert slots == ["web-0", "web-1", "web-2", "web-3", "reconciler-0", "ops-0"]


def test_each_gauge_is_added_over_the_workers_in_its_own_way(tmp_path, start):
    first, second = start(), start()
    for process, ratio, limit, state in ((first, 0.9, 6, 1), (second, 0.2, 6, 0)):
        process.run(f"metrics.retry_budget_remaining_ratio.set({ratio})")
        process.run(f"metrics.bulkhead_limit.set({limit})")
        process.run(f"metrics.breaker_state.labels('stripe', 'open').set({state})")
        process.run(f"metrics.needs_review.set({limit + state})")

    assert value(tmp_path, "retry_budget_remaining_ratio") == 0.2
    assert value(tmp_path, "bulkhead_limit") == 12
    assert value(tmp_path, "breaker_state", provider="stripe", state="open") == 0
    assert value(tmp_path, "needs_review") == 6


def test_forked_process_takes_a_separate_slot(tmp_path, start):
    parent = start()
    parent.run("metrics.payments_good_total.inc()")

    parent.run(
        "import os; child = os.fork(); "
        "child or (slots.claim('web'), metrics.payments_good_total.inc(10), os._exit(0)); "
        "os.waitpid(child, 0)"
    )
    parent.run("metrics.payments_good_total.inc()")

    assert value(tmp_path, "payments_good_total") == 12
    assert {path.name for path in tmp_path.glob("*-*.lock")} == {"web-0.lock", "web-1.lock"}


def test_process_without_a_claim_leaves_no_file(tmp_path):
    """A command of an operator may inherit the directory of the workers that serve."""
    program = (
        "from service.observability.metrics import catalogue as metrics\n"
        "metrics.payments_good_total.inc()\n"
        "assert metrics.payments_good_total._value.get() == 1.0"
    )

    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        check=True,
        timeout=60,
    )

    assert list(tmp_path.iterdir()) == []


# One run each of a worker's short life, so that 200 of them do not import the library 200 times.
MANY_LIVES = """
import os, sys
from service.observability.metrics import catalogue as metrics, slots
lives, seats = int(sys.argv[1]), 4
def live(life):
    slots.claim("web")
    for operation in metrics.OPERATIONS:
        metrics.provider_call_duration_seconds.labels("stripe", operation).observe(0.2)
    for route in range(24):
        metrics.http_request_duration_seconds.labels(f"/route/{route}", "GET").observe(0.1)
        for status in ("200", "404", "422", "429", "500", "503"):
            metrics.http_requests_total.labels(f"/route/{route}", "GET", status).inc()
    for outcome in metrics.PAYMENT_OUTCOMES:
        metrics.payment_duration_seconds.labels("stripe", outcome).observe(0.1)
    for statement in range(30):
        metrics.db_statement_duration_seconds.labels(f"statement_{statement}").observe(0.1)
    metrics.payments_good_total.inc()
    os.kill(os.getpid(), 9)
running = []
for life in range(lives):
    child = os.fork()
    if not child:
        live(life)
    running.append(child)
    if len(running) == seats:
        os.waitpid(running.pop(0), 0)
for child in running:
    os.waitpid(child, 0)
"""


@pytest.mark.measures
def test_200_killed_workers_leave_few_files_and_exact_counts(tmp_path):
    few, many = after_lives(4, tmp_path / "few"), after_lives(200, tmp_path / "many")

    assert value(many, "payments_good_total") == 200
    assert len(list(many.glob("*.db"))) <= 4 * 8
    assert len(read_samples(SharedRegistry(many))) <= 2000
    # The milliseconds are measured by `python -m tests.bench metrics`, on an idle machine.
    assert scrape_s(many) < 2 * scrape_s(few)


def after_lives(number: int, path: Path) -> Path:
    """The directory of so many workers, four at a time, all of them killed."""
    path.mkdir()
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(path)}
    command = [sys.executable, "-c", MANY_LIVES, str(number)]
    subprocess.run(command, env=environ, check=True, timeout=120)
    return path


def scrape_s(path: Path) -> float:
    """CPU seconds of a scrape, the best of some: the machine may be busy with something else."""
    registry = SharedRegistry(path)

    def once_s() -> float:
        began_s = time.thread_time()
        exposition.generate_latest(registry)
        return time.thread_time() - began_s

    return min(once_s() for _ in range(5))


def test_who_looks_for_living_workers_waits_for_another_who_does(tmp_path, start):
    start("web")
    lock = os.open(tmp_path / "slots.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    release = threading.Timer(0.3, os.close, [lock])

    at_once = live_slots(tmp_path)
    release.start()
    waited = live_slots(tmp_path, wait_s=30.0)

    assert (at_once, waited) == (None, {"web-0"})


def test_exposition_is_valid_openmetrics_with_exemplars(tmp_path, start):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    process = start()
    process.run(f"metrics.db_pool_wait_seconds.observe(0.3, exemplar={{'trace_id': '{trace_id}'}})")

    text = exposition.generate_latest(SharedRegistry(tmp_path)).decode()

    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    samples = families["holdfast_db_pool_wait_seconds"].samples
    exemplars = {sample.labels["le"]: sample.exemplar for sample in samples if sample.exemplar}
    assert exemplars["0.5"].labels == {"trace_id": trace_id}
    assert exemplars["0.5"].value == 0.3
    assert list(exemplars) == ["0.5"]


def test_a_full_disk_costs_the_numbers_and_not_the_process(tmp_path):
    # The limit on a file's size simulates the disk's; SIGXFSZ is ignored as Python does.
    program = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from service.observability.metrics import catalogue as metrics, slots\n"
        "slots.claim('web')\n"
        "metrics.payments_good_total.inc()\n"
        "print(metrics.payments_good_total._value.get())\n"
    )
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    answer = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
    )

    assert (answer.returncode, answer.stdout) == (0, "1.0\n")


def test_damaged_file_is_skipped_and_recreated_by_its_owner(tmp_path, start):
    healthy = start()
    healthy.run("metrics.payments_good_total.inc()")
    (tmp_path / "counter_web-1.db").write_bytes(b"\xff" * 4096)
    seen = value(tmp_path, "payments_good_total")

    start().run("metrics.payments_good_total.inc()")

    assert seen == 1
    assert value(tmp_path, "payments_good_total") == 2


def test_a_file_grows_and_keeps_its_numbers(tmp_path):
    path = tmp_path / "counter_web-0.db"
    file = SlotFile(path)
    for number in range(3000):
        file.write(file.position(f"a key that is as long as real ones are, {number}"), number, 0.0)
    file.close()

    again = SlotFile(path)
    number, _ = again.read(again.position("a key that is as long as real ones are, 2999"))
    again.close()

    assert number == 2999
    assert sum(number for _, number, _ in read_file(path)) == 3000 * 2999 / 2
