"""Debian's chromium, and the console open in it, for tests and for `make screenshots`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.needed_programs import path_of
from tests.support.stack.running_stack import RunningStack, discard, free_port, running_stack

# The buttons of the page, by their text.
PAYMENT = "Process a Test Payment"
TIMEOUT = "Test Payment Timeout (5000ms)"
POOL = "Test DB Pool Exhaustion"
CONNECTION = "Test HTTPSConnectionPool Error"
HEALTH = "Check Service Health"
BUTTONS = (TIMEOUT, POOL, CONNECTION, HEALTH, PAYMENT)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
KEY_STORED_AS = "holdfast.operator_key"
# On a busy machine; every wait ends as soon as its condition is true.
WAIT_MS = 60_000


class ConsoleStack:
    """A running Holdfast that can stop and restart at the same addresses."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._bind = f"127.0.0.1:{free_port()}"
        self._ops_bind = f"127.0.0.1:{free_port()}"
        self._stack = ExitStack()
        self.local_stack = self.start()

    def start(self) -> RunningStack:
        self.local_stack = self._stack.enter_context(
            running_stack(
                self._home,
                keep=True,
                HOLDFAST_BIND=self._bind,
                HOLDFAST_OPS_BIND=self._ops_bind,
            )
        )
        return self.local_stack

    def stop(self) -> None:
        """Stop it; `start` goes on with the same data."""
        self._stack.close()

    def end(self) -> None:
        self.stop()
        discard(self._home)


class Console:
    """The visible page, and all errors of the browser."""

    def __init__(self, page: Page, local_stack: RunningStack) -> None:
        self.page = page
        self.local_stack = local_stack
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def open(self, *, with_key: bool = True) -> Page:
        """Load the page and wait until it is live."""
        if with_key:
            self.page.add_init_script(
                f"sessionStorage.setItem('{KEY_STORED_AS}', '{self.local_stack.api_key}')"
            )
        self.page.goto(self.local_stack.ops_url + "/")
        expect(self.page.locator("#updated")).to_have_text("Live", timeout=WAIT_MS)
        return self.page

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path_of("chromium"), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def console(browser: Browser, local_stack: RunningStack, **context: Any) -> Iterator[Console]:
    """A console in a new context: no key, no theme, no stored data."""
    opened = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})
    expect.set_options(timeout=WAIT_MS)
    try:
        yield Console(opened.new_page(), local_stack)
    finally:
        opened.close()


def drill_titles(running: ConsoleStack) -> list[str]:
    listed = requests.get(running.local_stack.ops_url + "/drills", timeout=60).json()
    return [drill["title"] for drill in listed["drills"]]
