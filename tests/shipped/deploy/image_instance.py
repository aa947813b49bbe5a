"""The instance of compose.yaml, run by podman from the built image.

The command lines, users, limits, volumes, secrets and health checks come from the file. Only the network
is the host's, so that a build agent needs no bridge, and therefore the ports are free ones.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.manifests import ENTRYPOINT, ROOT, compose

STOP_TIMEOUT_S = 30
# podman would raise these limits and start a systemd timer, which a build agent forbids.
AS_A_BUILD_AGENT = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--no-healthcheck")


class Instance:
    """Containers that share their network, processes and metric files, as one pod does."""

    def __init__(self, images: dict[str, str], secrets: Path, ports: dict[str, int]) -> None:
        self._whole = compose("compose.sandbox.yaml")
        self._images = images
        self._secrets = secrets
        self._ports = ports
        # Their names begin with the directory's, and memory file systems are mounted in it.
        self._home = Path(tempfile.mkdtemp(prefix="holdfast-image-"))
        self._mounted: list[Path] = []
        self.started: list[str] = []

    @classmethod
    @contextmanager
    def running(
        cls, *, images: dict[str, str], secrets: Path, ports: dict[str, int]
    ) -> Iterator[Instance]:
        """The instance with its volumes, without started services; all is removed at the end."""
        instance = cls(images, secrets, ports)
        try:
            instance._make_volumes()
            yield instance
        except BaseException:
            for name in instance.started:
                print(f"--- {name}\n{instance.log(name)[-3000:]}")
            raise
        finally:
            instance._remove()

    def start(self, name: str) -> None:
        """Run a service of the file; waits for the end of a one-shot one."""
        service = self._service(name)
        is_once = service["restart"] == "no"
        words = ["--rm"] if is_once else ["--detach", f"--name={self._named(name)}"]
        entrypoint, *arguments = service.get("entrypoint", ENTRYPOINT)
        command = [*arguments, *service.get("command", [])]
        options = [*self._options(name, service), f"--entrypoint={entrypoint}"]
        self.started += [] if is_once else [name]
        run("podman", "run", *words, *options, self._images[service["image"]], *command)

    def is_healthy(self, name: str) -> bool:
        """Whether the file's own health check passes."""
        _, *command = self._service(name)["healthcheck"]["test"]
        return self.can(name, *command)

    def can(self, name: str, *command: str) -> bool:
        line = ["podman", "exec", self._named(name), *command]
        return subprocess.run(line, capture_output=True).returncode == 0

    def inside(self, name: str, *command: str) -> str:
        """The output of a command in the container."""
        return run("podman", "exec", self._named(name), *command).strip()

    def capabilities(self, name: str) -> int:
        status = self.inside(name, "cat", "/proc/self/status")
        sets = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
        return max(int(each, 16) for each in sets)

    def log(self, name: str) -> str:
        said = subprocess.run(["podman", "logs", self._named(name)], capture_output=True, text=True)
        return said.stdout + said.stderr

    def kill(self, name: str) -> None:
        """SIGKILL, like the kernel's when memory runs out."""
        run("podman", "kill", "--signal=KILL", self._named(name))
        run("podman", "wait", self._named(name))

    def start_again(self, name: str) -> None:
        run("podman", "start", self._named(name))

    def stop(self, name: str) -> int:
        """SIGTERM, like an engine's; returns the exit status."""
        run("podman", "stop", f"--time={STOP_TIMEOUT_S}", self._named(name))
        return int(run("podman", "inspect", "--format={{.State.ExitCode}}", self._named(name)))

    def _service(self, name: str) -> dict[str, Any]:
        """The file's value, with this machine's ports."""
        service: dict[str, Any] = _replaced(self._whole["services"][name], self._ports)
        if name in ("data-plane", "ops-plane", "reconciler"):
            service["environment"] |= {
                "HOLDFAST_BIND": f"127.0.0.1:{self._ports['8080']}",
                "HOLDFAST_OPS_BIND": f"127.0.0.1:{self._ports['8081']}",
            }
        return service

    def _options(self, name: str, service: dict[str, Any]) -> list[str]:
        limits = service["deploy"]["resources"]["limits"]
        options = ["--runtime=runc", "--network=host", *AS_A_BUILD_AGENT, "--read-only-tmpfs=false"]
        options += [f"--read-only={str(service['read_only']).lower()}", f"--user={service['user']}"]
        options += [f"--cap-drop={each}" for each in service["cap_drop"]]
        options += ["--security-opt=no-new-privileges"]
        options += [f"--memory={limits['memory']}", f"--pids-limit={limits['pids']}"]
        options += [f"--env={name}={text}" for name, text in service.get("environment", {}).items()]
        for number, each in enumerate(service.get("tmpfs", [])):
            path, _, how = each.partition(":")
            place = self._home / f"{name}-{number}"
            self._mount("tmpfs", how, "tmpfs", place)
            options += [f"--volume={place}:{path}"]
        options += [f"--volume={self._volume(each)}" for each in service.get("volumes", [])]
        options += [
            f"--volume={self._secrets / each}:/run/secrets/{each}:ro"
            for each in service.get("secrets", [])
        ]
        if service.get("pid") == "service:instance":
            options += [f"--pid=container:{self._named('instance')}"]
        return options

    def _make_volumes(self) -> None:
        for name, volume in self._whole["volumes"].items():
            if "driver_opts" in volume:
                how = volume["driver_opts"]
                self._mount(how["type"], how["o"], how["device"], self._home / name)
            else:
                run("podman", "volume", "create", self._named(name))

    def _mount(self, kind: str, how: str, device: str, place: Path) -> None:
        """The mount in Docker's form; Debian's podman accepts neither a size nor an owner for memory."""
        place.mkdir()
        run("mount", "-t", kind, "-o", how, device, str(place))
        self._mounted.append(place)

    def _volume(self, mount: str) -> str:
        name, _, rest = mount.partition(":")
        place = self._home / name
        return f"{place if place in self._mounted else self._named(name)}:{rest}"

    def _named(self, name: str) -> str:
        return f"{self._home.name}-{name}"

    def _remove(self) -> None:
        for name in reversed(self.started):
            run("podman", "rm", "--force", "--time=0", self._named(name))
        for place in self._mounted:
            run("umount", str(place))
        for name in self._whole["volumes"]:
            run("podman", "volume", "rm", "--force", self._named(name))
        shutil.rmtree(self._home)


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    """The standard output; a failure ends the test with the program's output."""
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def _replaced(value: Any, ports: dict[str, int]) -> Any:
    """The same with this machine's ports in place of the file's, and `$$` read by compose's rule."""
    if isinstance(value, dict):
        return {key: _replaced(each, ports) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, ports) for each in value]
    if isinstance(value, str):
        for port, free in ports.items():
            value = value.replace(port, str(free)).replace("$$", "$")
    return value
