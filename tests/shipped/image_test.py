"""`make image-test`: build the image and pay with it, as production would run it.

Read-only, without capabilities, as a plain user, against a PostgreSQL and a provider that are outside
of it. Needs root, and Debian's buildah, podman, runc and postgresql; debootstrap too, unless BASE
names an image to build on.
"""

from __future__ import annotations

import json
import os
import secrets
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

from service.payments.merchants import generate_key
from tests.running_house import ROOT, free_port, wait_for
from tests.sandbox_process import API_KEY as PROVIDER_KEY
from tests.sandbox_process import running_sandbox

IMAGE = "localhost/holdfast:image-test"
BASE = "localhost/holdfast-image-test-base"
SUITE = "bookworm"
UID = "10001"
TOOLS = ("buildah", "podman", "runc")
# Where a machine keeps what it trusts; a base made here must trust the same package index.
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20


def main() -> int:
    if os.geteuid() != 0:
        print("image-test needs root: run  sudo make image-test", file=sys.stderr)
        return 2
    base = os.environ.get("BASE")
    missing = [tool for tool in (*TOOLS, *([] if base else ["debootstrap"])) if not _has(tool)]
    if missing:
        install = "apt-get install --no-install-recommends " + " ".join(missing)
        print(f"image-test needs more packages: run  {install}", file=sys.stderr)
        return 2
    base = base or _timed("base", _ensure_base)
    _timed("build", lambda: _build(base))
    _timed("pay", _pay)
    return 0


def _ensure_base() -> str:
    """A bare Debian with Python, made once a machine: registries are not reachable everywhere."""
    if subprocess.run(["podman", "image", "exists", BASE]).returncode == 0:
        return BASE
    with tempfile.TemporaryDirectory(prefix="holdfast-base-") as directory:
        root = Path(directory, "root")
        packages = "--include=python3,python3-venv,ca-certificates"
        _run("debootstrap", "--variant=minbase", packages, SUITE, str(root), quiet=True)
        shutil.copy(TRUSTED, root / TRUSTED.relative_to("/"))
        shutil.rmtree(root / "var/cache/apt/archives")
        _run("tar", "-C", str(root), "-cf", f"{directory}/base.tar", ".")
        Path(directory, "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        _run("buildah", "bud", "-q", "--isolation=chroot", "-t", BASE, directory)
    return BASE


def _build(base: str) -> None:
    options = (
        "--isolation=chroot",
        "--network=host",
        "--format=docker",
        f"--build-arg=BASE={base}",
    )
    _run("buildah", "bud", "-q", *options, "-t", IMAGE, "-f", "deploy/Dockerfile", ".")


def _pay() -> None:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-image-")))
        home.chmod(0o711)
        database_url = stack.enter_context(_running_postgres(home / "postgres"))
        sandbox = stack.enter_context(running_sandbox(home / "sandbox"))
        authority = home / "provider-ca.pem"
        shutil.copy(sandbox.ca_file, authority)
        authority.chmod(0o644)
        api_key = generate_key("test")
        port, ops_port = free_port(), free_port()
        instance = stack.enter_context(
            _Instance.running(
                {
                    "DATABASE_URL": database_url,
                    "STRIPE_API_BASE": sandbox.url,
                    "STRIPE_API_KEY": PROVIDER_KEY,
                    "HOLDFAST_PROVIDER_CA_FILE": "/provider-ca.pem",
                    "HOLDFAST_BOOTSTRAP_API_KEY": api_key,
                    "HOLDFAST_BIND": f"127.0.0.1:{port}",
                    "HOLDFAST_OPS_BIND": f"127.0.0.1:{ops_port}",
                },
                authority=authority,
            )
        )
        instance.run_once("migrate")
        for part in ("serve", "ops", "reconcile"):
            instance.start(part)
        get = requests.Session()
        get.trust_env = False
        wait_for(
            lambda: _answers(get, f"http://127.0.0.1:{port}/readyz"), timeout_s=START_TIMEOUT_S
        )

        answer = get.post(
            f"http://127.0.0.1:{port}/v1/payments",
            json={"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"},
            headers={"Authorization": f"Bearer {api_key}", "Idempotency-Key": "image-test"},
            timeout=20,
        )

        _require(answer.status_code == 201, f"the payment was answered {answer.text}")
        charges = [each for each in sandbox.books() if each["kind"] == "charge"]
        _require(len(charges) == 1, f"the provider's books have {charges}")
        ops = f"http://127.0.0.1:{ops_port}"
        wait_for(lambda: _answers(get, f"{ops}/metrics"), timeout_s=START_TIMEOUT_S)
        counted = "holdfast_payments_good_total 1.0"
        wait_for(lambda: counted in get.get(f"{ops}/metrics", timeout=5).text)
        _require(instance.inside("serve", "id", "-u") == UID, "it does not run as the plain user")
        _require(instance.capabilities("serve") == 0, "it has capabilities")
        _require(not instance.can("serve", "touch", "/opt/holdfast/x"), "its root can be written")
        _require(not instance.can("serve", "ls", "venv/bin/pip"), "pip is in the image")
        port_text = str(port)
        _require(
            instance.can("serve", "python", "deploy/healthcheck.py", port_text), "health is red"
        )
        # The first is the init of their common process space, so it goes last.
        for part in ("reconcile", "ops", "serve"):
            _require(instance.stop(part) == 0, f"{part} does not stop in good order")
        get.close()


class _Instance:
    """Containers that share their metric files and see each other's processes, as one pod does."""

    def __init__(self, environ: dict[str, str], authority: Path, shared: str) -> None:
        options = ["--runtime=runc", "--network=host", "--read-only", "--cap-drop=ALL"]
        options += ["--security-opt=no-new-privileges", "--read-only-tmpfs=false"]
        # podman would raise these limits and start a systemd timer: more than a build agent may.
        options += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--no-healthcheck"]
        options += [f"--volume={shared}:/run/holdfast"]
        options += [f"--volume={authority}:/provider-ca.pem:ro"]
        self._environ = environ
        self._options = [*options, *(f"--env={name}" for name in environ)]
        self._names: dict[str, str] = {}
        self._prefix = Path(shared).name

    @classmethod
    @contextmanager
    def running(cls, environ: dict[str, str], *, authority: Path) -> Iterator[_Instance]:
        # Memory, as a pod's emptyDir or a task's tmpfs is.
        shared = tempfile.mkdtemp(prefix="holdfast-image-test-", dir="/dev/shm")
        os.chown(shared, int(UID), int(UID))
        instance = cls(environ, authority, shared)
        try:
            yield instance
        except BaseException:
            for name in instance._names.values():
                print(_run("podman", "logs", "--tail=20", name), file=sys.stderr)
            raise
        finally:
            for name in reversed(instance._names.values()):
                _run("podman", "rm", "-f", name)
            shutil.rmtree(shared)

    def run_once(self, part: str) -> None:
        self._podman("run", "--rm", *self._options, IMAGE, part)

    def start(self, part: str) -> None:
        first = next(iter(self._names.values()), None)
        together = [f"--pid=container:{first}"] if first else []
        name = f"{self._prefix}-{part}"
        self._podman("run", "--detach", f"--name={name}", *together, *self._options, IMAGE, part)
        self._names[part] = name

    def stop(self, part: str) -> int:
        """SIGTERM as an engine sends it; the exit status."""
        name = self._names[part]
        self._podman("stop", f"--time={STOP_TIMEOUT_S}", name)
        return int(self._podman("inspect", "--format={{.State.ExitCode}}", name))

    def inside(self, part: str, *command: str) -> str:
        return self._podman("exec", self._names[part], *command).strip()

    def can(self, part: str, *command: str) -> bool:
        line = ["podman", "exec", self._names[part], *command]
        return subprocess.run(line, capture_output=True).returncode == 0

    def capabilities(self, part: str) -> int:
        status = self.inside(part, "cat", "/proc/self/status")
        sets = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
        return max(int(each, 16) for each in sets)

    def _podman(self, *arguments: str) -> str:
        # Values go through the environment, so that no key stands on a command line.
        return _run("podman", *arguments, environ=self._environ)


@contextmanager
def _running_postgres(home: Path) -> Iterator[str]:
    """A server of this machine's own, on loopback with a password; the URL of its owner."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    password, port = secrets.token_hex(16), free_port()
    home.mkdir()
    (home / "password").write_text(password)
    shutil.chown(home, "postgres", "postgres")
    shutil.chown(home / "password", "postgres", "postgres")
    as_postgres = ("runuser", "-u", "postgres", "--", "env", "-C", str(home))
    how = ("--auth=scram-sha-256", f"--pwfile={home}/password", "--username=holdfast", "--no-sync")
    _run(*as_postgres, str(binaries / "initdb"), *how, str(home / "data"))
    settings = ("listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={home}")
    given = " ".join(f"-c {each}" for each in (*settings, "fsync=off", "max_connections=60"))
    control = (*as_postgres, str(binaries / "pg_ctl"), "-D", str(home / "data"))
    _run(*control, "-w", "-l", str(home / "log"), "-o", given, "start")
    try:
        yield f"postgresql://holdfast:{password}@127.0.0.1:{port}/postgres"
    finally:
        _run(*control, "-w", "-m", "fast", "stop")


def _answers(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False


def _run(*command: str, quiet: bool = False, environ: dict[str, str] | None = None) -> str:
    """Its standard output; ends the test with what it said when it fails."""
    given = {**os.environ, **(environ or {})}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return "" if quiet else done.stdout


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise SystemExit(f"image-test: {otherwise}")


def _timed(what: str, work: Callable[[], Any]) -> Any:
    begun_s = time.monotonic()
    result = work()
    print(json.dumps({"step": what, "seconds": round(time.monotonic() - begun_s, 1)}), flush=True)
    return result


def _has(tool: str) -> bool:
    return shutil.which(tool) is not None


if __name__ == "__main__":
    sys.exit(main())
