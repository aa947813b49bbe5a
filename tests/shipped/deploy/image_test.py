"""`make image-test`: build the image and make a payment with it, as compose.yaml runs it in production.

Read-only, without capabilities, as a plain user, with an external PostgreSQL. Needs
root, and Debian's buildah, podman, runc, uidmap and postgresql; debootstrap too, unless BASE names an
image to build on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.shipped.deploy.image_instance import Instance, run
from tests.support.manifests import DEPLOY
from tests.support.stack.running_stack import free_port, wait_for

# Both images, by their lock file.
IMAGES = {
    "holdfast:0.1.0": ("localhost/holdfast:image-test", "requirements.lock"),
    "holdfast:0.1.0-sandbox": ("localhost/holdfast:image-test-sandbox", "deploy/sandbox.lock"),
}
BASE = "localhost/holdfast-image-test-base"
SUITE = "bookworm"
UID = "10001"
TOOLS = ("buildah", "podman", "runc")
PARTS = ("data-plane", "ops-plane", "reconciler")
# The machine's directory of trusted certificates; a base made here must trust the same package index.
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
START_TIMEOUT_S = 60.0


def main() -> int:
    if os.geteuid() != 0:
        print("image-test needs root: run  sudo make image-test", file=sys.stderr)
        return 2
    base = os.environ.get("BASE")
    missing = [tool for tool in (*TOOLS, *([] if base else ["debootstrap"])) if not _has(tool)]
    if missing:
        install = "apt-get install --no-install-recommends " + " ".join([*missing, "uidmap"])
        print(f"image-test needs more packages: run  {install}", file=sys.stderr)
        return 2
    base = base or _timed("base", _ensure_base)
    for image, lock in IMAGES.values():
        _timed(f"build {lock}", lambda image=image, lock=lock: _build(base, image, lock))
    _say("size", megabytes=_megabytes(IMAGES["holdfast:0.1.0"][0]), of_it_base=_megabytes(base))
    _timed("pay", _pay)
    return 0


def _ensure_base() -> str:
    """A bare Debian with Python, made once on each machine: registries are not reachable everywhere."""
    if subprocess.run(["podman", "image", "exists", BASE]).returncode == 0:
        return BASE
    with tempfile.TemporaryDirectory(prefix="holdfast-base-") as directory:
        root = Path(directory, "root")
        packages = "--include=python3,python3-venv,ca-certificates"
        run("debootstrap", "--variant=minbase", packages, SUITE, str(root))
        shutil.copy(TRUSTED, root / TRUSTED.relative_to("/"))
        shutil.rmtree(root / "var/cache/apt/archives")
        run("tar", "-C", str(root), "-cf", f"{directory}/base.tar", ".")
        Path(directory, "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        run("buildah", "bud", "-q", "--isolation=chroot", "-t", BASE, directory)
    return BASE


def _build(base: str, image: str, lock: str) -> None:
    options = ("--isolation=chroot", "--network=host", "--format=docker")
    lab = int(lock == IMAGES["holdfast:0.1.0-sandbox"][1])
    arguments = (f"--build-arg=BASE={base}", f"--build-arg=LOCK={lock}", f"--build-arg=LAB={lab}")
    run("buildah", "bud", "-q", *options, *arguments, "-t", image, "-f", "deploy/Dockerfile", ".")


def _pay() -> None:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-image-")))
        home.chmod(0o711)
        ports = {name: free_port() for name in ("8080", "8081", "9443", "5432")}
        secrets = _make_secrets(home / "secrets", ports)
        stack.enter_context(_running_postgres(home / "postgres", secrets, ports["5432"]))
        images = {name: image for name, (image, _) in IMAGES.items()}
        instance = stack.enter_context(
            Instance.running(images=images, secrets=secrets, ports=ports)
        )
        callers = _Callers(stack.enter_context(requests.Session()), secrets, ports)
        for name in ("instance", "migrate", "sandbox"):
            instance.start(name)
        wait_for(lambda: instance.is_healthy("sandbox"), timeout_s=START_TIMEOUT_S)
        for name in PARTS:
            instance.start(name)
        _require_paid(instance, callers)
        _require_closed(instance)
        _require_survives(instance, callers)
        # The first container has the others' processes, so it is removed last.
        for name in (*PARTS, "sandbox"):
            status = instance.stop(name)
            _require(status == 0, f"{name} does not stop in good order: {status}")


def _require_paid(instance: Instance, callers: _Callers) -> None:
    """A payment through all parts: charged once, counted, logged, delivered, and health is green."""
    wait_for(callers.is_ready, timeout_s=START_TIMEOUT_S)
    answer = callers.pay("image-test")
    _require(answer.status_code == 201, f"the payment was answered {answer.text}")
    authority = instance.inside("sandbox", "cat", "/var/lib/sandbox/tls/ca.pem")
    charges = [each for each in callers.books(authority) if each["kind"] == "charge"]
    _require(len(charges) == 1, f"the provider's books have {charges}")
    for counted in (
        "holdfast_payments_good_total 1.0",
        'holdfast_webhooks_received_total{result="stored"}',
    ):
        wait_for(lambda counted=counted: counted in callers.metrics(), timeout_s=START_TIMEOUT_S)
    for name in ("data-plane", "ops-plane"):
        wait_for(lambda name=name: instance.is_healthy(name), timeout_s=START_TIMEOUT_S)
    # Database, provider, reconciler, both workers, disk and clock, in the ops plane's view.
    wait_for(lambda: callers.health() == "pass", timeout_s=START_TIMEOUT_S)
    kept = instance.inside("ops-plane", "cat", "/var/log/holdfast/data-plane.log")
    _require('"payment.succeeded"' in kept, "the agent would not see the payment in the log")
    for name in PARTS:
        _require("breaker.alone" not in instance.log(name), f"{name} has a breaker of its own")


def _require_closed(instance: Instance) -> None:
    for name in PARTS:
        _require(instance.inside(name, "id", "-u") == UID, f"{name} is not the plain user")
        _require(instance.capabilities(name) == 0, f"{name} has capabilities")
        _require(
            not instance.can(name, "touch", "/opt/holdfast/x"), f"{name}'s root can be written"
        )
    _require(not instance.can("data-plane", "ls", "venv/bin/pip"), "pip is in the image")


def _require_survives(instance: Instance, callers: _Callers) -> None:
    """A killed part restarts without the others, and continues its counts."""
    instance.kill("data-plane")
    _require(callers.metrics() != "", "the ops plane died with the data plane")
    instance.start_again("data-plane")
    wait_for(callers.is_ready, timeout_s=START_TIMEOUT_S)
    _require(callers.pay("image-test").headers.get("Idempotent-Replayed") == "true", "paid anew")
    _require(callers.pay("image-test-2").status_code == 201, "it does not pay again")
    wait_for(lambda: "holdfast_payments_good_total 3.0" in callers.metrics())


class _Callers:
    """An application, a scraper, and a reader of the provider's books."""

    def __init__(self, session: requests.Session, secrets: Path, ports: dict[str, int]) -> None:
        session.trust_env = False
        self._session = session
        self._api_key = (secrets / "bootstrap_api_key").read_text().strip()
        self._data, self._ops, self._sandbox = (
            f"127.0.0.1:{ports[name]}" for name in ("8080", "8081", "9443")
        )

    def is_ready(self) -> bool:
        return self._text(f"http://{self._data}/readyz") != ""

    def pay(self, key: str) -> requests.Response:
        return self._session.post(
            f"http://{self._data}/v1/payments",
            json={"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"},
            headers={"Authorization": f"Bearer {self._api_key}", "Idempotency-Key": key},
            timeout=20,
        )

    def metrics(self) -> str:
        return self._text(f"http://{self._ops}/metrics")

    def health(self) -> str:
        report = self._text(f"http://{self._ops}/diagnostics/health")
        return str(json.loads(report)["status"]) if report else ""

    def books(self, authority: str) -> list[dict[str, Any]]:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(authority)
            file.flush()
            answer = self._session.get(
                f"https://{self._sandbox}/_books", verify=file.name, timeout=10
            )
        movements: list[dict[str, Any]] = answer.json()["movements"]
        return movements

    def _text(self, url: str) -> str:
        """The body of a 200, else None."""
        try:
            answer = self._session.get(url, timeout=5)
        except requests.RequestException:
            return ""
        return answer.text if answer.status_code == 200 else ""


def _make_secrets(directory: Path, ports: dict[str, int]) -> Path:
    """The secrets by the guide's command in the image; then with this machine's database."""
    directory.mkdir()
    image, _ = IMAGES["holdfast:0.1.0"]
    options = ("--rm", "--runtime=runc", "--network=host", "--user=0:0", "--entrypoint=python")
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    mounted = f"--volume={directory}:/secrets"
    run("podman", "run", *options, *limits, mounted, image, "deploy/make_secrets.py", "/secrets")
    for name in ("database_url", "migrate_database_url"):
        text = (directory / name).read_text()
        (directory / name).write_text(text.replace("postgres:5432", f"127.0.0.1:{ports['5432']}"))
    return directory


@contextmanager
def _running_postgres(home: Path, secrets: Path, port: int) -> Iterator[None]:
    """A server of this machine, prepared like the one of compose.yaml."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    home.mkdir()
    password = (secrets / "postgres_password").read_text()
    (home / "password").write_text(password)
    shutil.chown(home, "postgres", "postgres")
    shutil.chown(home / "password", "postgres", "postgres")
    as_postgres = ("runuser", "-u", "postgres", "--", "env", "-C", str(home))
    how = ("--auth=scram-sha-256", f"--pwfile={home}/password", "--username=holdfast_owner")
    run(*as_postgres, str(binaries / "initdb"), *how, "--no-sync", str(home / "data"))
    settings = ("listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={home}")
    given = " ".join(f"-c {each}" for each in (*settings, "fsync=off"))
    control = (*as_postgres, str(binaries / "pg_ctl"), "-D", str(home / "data"))
    run(*control, "-w", "-l", str(home / "log"), "-o", given, "start")
    try:
        owner = {
            **os.environ,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGPASSWORD": password.strip(),
            "POSTGRES_USER": "holdfast_owner",
            "POSTGRES_DB": "holdfast",
            "SERVICE_PASSWORD_FILE": str(secrets / "service_password"),
        }
        run("createdb", "--username=holdfast_owner", "holdfast", environ=owner)
        run("sh", str(DEPLOY / "postgres" / "10-service-role.sh"), environ=owner)
        yield
    finally:
        run(*control, "-w", "-m", "fast", "stop")


def _megabytes(image: str) -> int:
    return int(run("podman", "image", "inspect", "--format={{.Size}}", image)) // 1_000_000


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise SystemExit(f"image-test: {otherwise}")


def _timed(what: str, work: Callable[[], Any]) -> Any:
    begun_s = time.monotonic()
    result = work()
    _say(what, seconds=round(time.monotonic() - begun_s, 1))
    return result


def _say(step: str, **figures: float) -> None:
    print(json.dumps({"step": step, **figures}), flush=True)


def _has(tool: str) -> bool:
    return shutil.which(tool) is not None


if __name__ == "__main__":
    sys.exit(main())
