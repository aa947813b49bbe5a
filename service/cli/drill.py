"""Run a drill on a live instance and report its verdict.

Connects to the ops plane: the local run's (HOLDFAST_HOME/run.json), or HOLDFAST_OPS_URL with
HOLDFAST_API_KEY (scope platform). Ctrl-C stops the drill. Exit status: 0 HELD, 1 BROKE, 3 otherwise
(INCONCLUSIVE, ABORTED), 2 when the drill was refused.

example:
  python -m service drill --list
  python -m service drill payment-timeout
  python -m service drill connection-error --scope pair --junit drill.xml
  python -m service drill game-day --blind
  python -m service drill --answer slow-drip
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.settings import Settings, SettingsError

STATUS_OF = {"HELD": 0, "SHOWN": 0, "BROKE": 1}
UNDECIDED = 3
POLL_S = 0.5
ANSWER_TIMEOUT_S = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="name of the drill; see --list")
    parser.add_argument(
        "--list", action="store_true", help="show the drills and their last verdicts"
    )
    parser.add_argument(
        "--scope", choices=["instance", "pair"], help="this instance, or two copies"
    )
    parser.add_argument(
        "--blind",
        action="store_true",
        help="of a game day: one hidden drill of it, for you to identify",
    )
    parser.add_argument(
        "--answer", metavar="DRILL", help="name the fault of the blind game day that is running"
    )
    parser.add_argument("--dry-run", action="store_true", help="only check whether it may begin")
    parser.add_argument("--fault-s", type=int, help="duration of the fault")
    parser.add_argument("--load-rps", type=int, help="synthetic payments a second")
    parser.add_argument("--reason", default="", help="stored with the report")
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write the report for a CI build"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report instead")


def run(arguments: argparse.Namespace) -> int:
    plane = _OpsPlane()
    if arguments.answer:
        return _answer(plane, arguments.answer)
    if arguments.list or not arguments.name:
        return _list(plane, as_json=arguments.json)
    body = {
        "drill": arguments.name,
        "scope": arguments.scope,
        "dry_run": arguments.dry_run,
        "blind": arguments.blind,
        "fault_s": arguments.fault_s,
        "load_rps": arguments.load_rps,
        "reason": arguments.reason,
    }
    status, begun = plane.ask(
        "POST", "/drills", {name: value for name, value in body.items() if value is not None}
    )
    if status >= 400:
        print(begun.get("detail", begun))
        print("\n".join(f"  {reason}" for reason in begun.get("reasons", [])))
        return 2
    if arguments.dry_run:
        print(json.dumps(begun, indent=2))
        return 0
    if arguments.blind and not arguments.json:
        print("A fault begins soon. Name it: python -m service drill --answer NAME")
    report = _follow(plane, f"/drills/{begun['id']}", is_quiet=arguments.json)
    if arguments.junit:
        arguments.junit.write_bytes(plane.read(f"/drills/{begun['id']}?format=junit"))
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _tell(report, plane)
    return STATUS_OF.get(str(report["verdict"]), UNDECIDED)


class _OpsPlane:
    """One instance's ops plane, with a key that has the scope `platform`."""

    def __init__(self) -> None:
        url, self._api_key = os.environ.get("HOLDFAST_OPS_URL"), os.environ.get("HOLDFAST_API_KEY")
        if not url or not self._api_key:
            url, self._api_key = _local_run()
        self.url = url
        self._host = urlsplit(url).netloc

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        status, answer = self._exchange(method, path, body)
        return status, json.loads(answer or b"{}")

    def read(self, path: str) -> bytes:
        return self._exchange("GET", path, None)[1]

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=ANSWER_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, headers
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError as error:
            raise SettingsError(f"The ops plane at {self.url} does not answer: {error}") from error
        finally:
            connection.close()


def _local_run() -> tuple[str, str]:
    run_file = Settings.from_environ().home / "run.json"
    try:
        run = json.loads(run_file.read_text())
    except OSError:
        raise SettingsError(
            f"No local run was found ({run_file}): start one with `make run`, or set"
            " HOLDFAST_OPS_URL and HOLDFAST_API_KEY."
        ) from None
    return run["ops_url"], run["api_key"]


def _list(plane: _OpsPlane, *, as_json: bool) -> int:
    status, answer = plane.ask("GET", "/drills")
    if status == 404:
        raise SettingsError("Simulation is off on that instance: see HOLDFAST_SIMULATION_ENABLED.")
    if as_json:
        print(json.dumps(answer, indent=2))
        return 0
    for drill in answer["drills"]:
        last = drill["last"]
        verdict = f"{last['verdict']} at {last['ended_at']}" if last else "never run"
        print(f"{drill['name']:<28} {drill['takes_s']:>4} s   {verdict}")
        print(f"    {drill['hypothesis']}")
    return 0


def _answer(plane: _OpsPlane, name: str) -> int:
    """Status 0: the answer is right; 1: it is wrong."""
    _, overview = plane.ask("GET", "/drills")
    running = overview.get("running")
    if running is None:
        print("No drill is running.")
        return 2
    status, answer = plane.ask("POST", f"/drills/{running['id']}/answer", {"name": name})
    if status >= 400:
        print(answer.get("detail", answer))
        return 2
    after = f", {answer['after_s']:g} s after it began" if answer["after_s"] is not None else ""
    print(f"{'Right' if answer['right'] else 'Wrong'}: {name}{after}.")
    return 0 if answer["right"] else 1


def _follow(plane: _OpsPlane, path: str, *, is_quiet: bool) -> dict[str, Any]:
    """Print each step as it happens, until the verdict; Ctrl-C stops the drill."""
    told = 0
    while True:
        try:
            _, report = plane.ask("GET", path)
            for step in report["progress"][told:]:
                told += 1
                if not is_quiet:
                    print(f"{step['at_s']:7.1f} s  {step['phase']:<10} {step['text']}", flush=True)
            if report["status"] == "ended":
                return report
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            print("Stopping the drill ...", flush=True)
            plane.ask("DELETE", path)


def _tell(report: dict[str, Any], plane: _OpsPlane) -> None:
    for part in report["parts"]:
        print(f"  {part['verdict']:<13} {part['name']}: {part['summary']}")
    for kind in ("bite", "expectations", "invariants"):
        for check in report[kind]:
            text = check.get("text") or f"{check['book']}: {check['rule']}"
            found = check.get("value", check.get("violations"))
            print(f"  {'ok ' if check['ok'] else 'NOT'}  {text}: {found}")
    print(f"\n{report['verdict']}. {report['summary']}")
    print(f"Report: {plane.url}/drills/{report['id']}?format=html")
