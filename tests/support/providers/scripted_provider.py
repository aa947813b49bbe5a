"""A Stripe-compatible provider controlled by a test's script: own process, TLS, own books.

`python -m tests.support.providers.scripted_provider` prints its address and certificate; a test starts it with
`scripted_provider()`. Without rules it is honest and honours idempotency keys.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import requests

from service.providers.adapters import adapter
from service.providers.base import Provider
from service.providers.http.transport import Transport
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_server import FaultServer, Peer, answer, certificate
from tests.support.providers.scripted_books import Reply, Rule, ScriptedBooks

ROOT = Path(__file__).resolve().parents[3]
CONTROL = "/_script/"


class ScriptedProvider:
    """The running process, for a test's rules and reads of its books."""

    def __init__(self, url: str, ca_file: str) -> None:
        self.url = url
        self.ca_file = ca_file
        self._session = requests.Session()
        self._session.trust_env = False

    def script(self, *rules: Rule) -> None:
        """Add rules after the existing ones; the first that fits a request decides."""
        self._ask("script", rules=[vars(rule) for rule in rules])

    def clear(self, *, books: bool = False) -> None:
        """Be honest again; with `books`, also forget all objects and movements."""
        self._ask("clear", books=books)

    def honour_keys(self, honours_keys: bool) -> None:
        """Whether a repeated idempotency key has any effect."""
        self._ask("honour_keys", honours_keys=honours_keys)

    def execute_held(self) -> int:
        """Execute every request with a rule `execute="later"`; returns their number."""
        return int(self._ask("execute_held"))

    def requests(self, operation: str | None = None) -> list[dict[str, Any]]:
        """All requests so far, in order: method, path, form, key, operation."""
        found: list[dict[str, Any]] = self._ask("requests")
        return [one for one in found if operation in (None, one["operation"])]

    def movements(self, payment_id: str | None = None, *kinds: str) -> list[dict[str, Any]]:
        """Money that moved, in order: kind (charge authorize capture void refund), amount, key."""
        return [
            one
            for one in self._ask("movements")
            if payment_id in (None, one["payment_id"]) and (not kinds or one["kind"] in kinds)
        ]

    def objects(self, collection: str) -> list[dict[str, Any]]:
        """The objects of a collection (payment_intents, charges, refunds, events ..)."""
        return list(self._ask("objects", collection=collection))

    def of_payment(self, payment_id: str) -> list[dict[str, Any]]:
        """The objects that carry our metadata of that payment."""
        return list(self._ask("by_payment", payment_id=payment_id))

    # --- Acts of others at the provider ---------------------------------------------------------

    def put(self, collection: str, **fields: Any) -> dict[str, Any]:
        """Add an object: a foreign charge, a dispute, an event."""
        return dict(self._ask("put", collection=collection, fields=fields))

    def change(self, object_id: str, *, event: str | None = None, **fields: Any) -> dict[str, Any]:
        """Change an object without our knowledge; with `event`, /v1/events has an event about it."""
        return dict(self._ask("change", object_id=object_id, event=event, fields=fields))

    def pay(self, object_id: str) -> dict[str, Any]:
        """Take (or reserve) the money of an object without any, like a late payer."""
        return dict(self._ask("act", act="pay", object_id=object_id))

    def cancel(self, object_id: str) -> dict[str, Any]:
        """Cancel an intent in the dashboard."""
        return dict(self._ask("act", act="cancel", object_id=object_id))

    def capture(self, object_id: str, amount: int) -> dict[str, Any]:
        """Capture in the dashboard."""
        return dict(self._ask("act", act="capture", object_id=object_id, amount=amount))

    def refund(self, object_id: str, amount: int) -> dict[str, Any]:
        """Refund in the dashboard: the refund has no metadata of ours."""
        return dict(self._ask("act", act="refund", object_id=object_id, amount=amount))

    def _ask(self, command: str, **arguments: Any) -> Any:
        said = self._session.post(
            f"{self.url}{CONTROL}{command}", json=arguments, verify=self.ca_file, timeout=60
        )
        assert said.status_code == 200, said.text
        return said.json()["result"]

    @contextlib.contextmanager
    def adapter(
        self, name: str = "stripe", *, flow: Literal["two_phase", "one_shot"] = "two_phase"
    ) -> Iterator[Provider]:
        """An adapter on separate connections."""
        transport = Transport(
            base_url=self.url,
            ca_file=self.ca_file,
            connect_timeout_s=2.0,
            max_connections=4,
            watchdog=Watchdog(),
        )
        try:
            yield adapter(name, transport, api_key="sk_test_scripted", flow=flow)
        finally:
            transport.close()


@contextlib.contextmanager
def scripted_provider() -> Iterator[ScriptedProvider]:
    """A provider process; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.providers.scripted_provider"],
        cwd=ROOT,
        # The closed pipe ends the process after the test's end.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = process.stdout.readline()
        assert said, f"The scripted provider did not start: exit {process.wait()}"
        try:
            yield ScriptedProvider(**json.loads(said))
        finally:
            process.stdin.close()
            process.wait(60)


# --- The process --------------------------------------------------------------------------------


class _Control:
    """A test's commands, each by its name."""

    def __init__(self, books: ScriptedBooks) -> None:
        self._books = books

    def run(self, command: str, given: dict[str, Any]) -> Any:
        books = self._books
        match command:
            case "script":
                books.rules += [Rule(**rule) for rule in given["rules"]]
            case "clear":
                books.clear(books=given["books"])
            case "honour_keys":
                books.honours_keys = given["honours_keys"]
            case "execute_held":
                return books.execute_held()
            case "requests":
                return books.shown_requests()
            case "movements":
                return books.movements
            case "objects":
                return books.collections.get(given["collection"], [])
            case "by_payment":
                return books.by_payment(given["payment_id"])
            case "put":
                return books.put(given["collection"], **given["fields"])
            case "change":
                return books.change(given["object_id"], event=given["event"], **given["fields"])
            case "act":
                return self._act(given)
            case _:
                raise ValueError(f"There is no command {command}.")
        return None

    def _act(self, given: dict[str, Any]) -> Any:
        found = self._books.find(given["object_id"])
        assert found is not None, given
        act = getattr(self._books, given["act"])
        return act(found, given["amount"]) if "amount" in given else act(found)


def _serve(books: ScriptedBooks, peer: Peer) -> None:
    control = _Control(books)
    while request := peer.read_request():
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        if target.startswith(CONTROL):
            peer.send(_controlled(control, target.removeprefix(CONTROL), body))
            continue
        headers = {name.lower(): text for name, _, text in (li.partition(": ") for li in lines)}
        reply = books.answer(method, target, headers, body)
        if reply.delay_s:
            peer.stopping.wait(reply.delay_s)
        if reply.drop:
            return
        peer.send(_on_the_wire(reply))


def _controlled(control: _Control, command: str, body: bytes) -> bytes:
    try:
        result = control.run(command, json.loads(body))
    except Exception as error:  # noqa: BLE001 - the test sees it
        return answer(500, json.dumps({"error": repr(error)}).encode())
    return answer(200, json.dumps({"result": result}).encode())


def _on_the_wire(reply: Reply) -> bytes:
    # NaN, Infinity and lone surrogates are sent as Python writes them: scripts need them.
    is_text = isinstance(reply.body, str)
    body = reply.body.encode(errors="surrogatepass") if is_text else json.dumps(reply.body).encode()
    more = "".join(f"{name}: {text}\r\n" for name, text in reply.headers.items())
    return answer(reply.status, body, more=more)


def _end_with_parent(server: FaultServer) -> None:
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    the_books = ScriptedBooks()
    the_server = FaultServer(lambda peer: _serve(the_books, peer))
    said_first = {"url": the_server.url, "ca_file": os.fspath(certificate())}
    print(json.dumps(said_first), flush=True)
    watcher = threading.Thread(target=_end_with_parent, args=(the_server,))
    watcher.start()
    watcher.join()
