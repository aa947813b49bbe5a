"""Fixtures of the console tests: an instance, a browser, and the open page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.shipped.console.console_browser import Console, ConsoleStack, chromium, console


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleStack]:
    running = ConsoleStack(tmp_path_factory.mktemp("console"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def seen(running: ConsoleStack, browser: Browser) -> Iterator[Console]:
    """A console; at the end the browser must not have reported any error."""
    with console(browser, running.local_stack) as seen:
        yield seen
        assert seen.complaints == []
