"""A drill's report in a real Chromium: on a screen, on a phone, in print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.shipped.console.console_browser import chromium
from tests.support.stack.drilling import drilled
from tests.support.stack.running_stack import running_stack

pytestmark = pytest.mark.needs("chromium")

HERE = Path(__file__).parent
DRILL = """
title = "A database that is a little slow <b>today</b>"
hypothesis = "Nobody notices, & nobody is refused."
[[faults]]
link = "database"
mode = "latency"
pause_ms = 40
seconds = 2
[[bite]]
text = "Answers came later"
struck = true
min = 1
[[expect]]
text = "Share of the callers refused"
callers = "5xx"
max = 0
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an ended drill's report."""
    own = tmp_path_factory.mktemp("drills")
    (own / "a-little-slow.toml").write_text(DRILL)
    home = tmp_path_factory.mktemp("local_stack")
    with running_stack(home, HOLDFAST_DRILLS_DIR=str(own)) as local_stack:
        run = drilled(local_stack, "a-little-slow")
        assert run["verdict"] == "HELD", run["summary"]
        yield f"{local_stack.ops_url}/drills/{run['id']}?format=html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("width", [1440, 360])
def test_report_is_readable_at_any_width_without_browser_errors(
    address: str, browser: Browser, width: int
):
    page, complaints = opened(browser, address, viewport={"width": width, "height": 900})

    expect(page.locator(".verdict strong")).to_have_text("HELD")
    expect(page.locator("h1")).to_have_text("A database that is a little slow <b>today</b>")
    expect(page.locator("figure svg")).to_have_count(4)
    assert page.locator("figure rect.fault").count() == 4
    assert page.locator("figure circle").count() > 5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_report(address: str, browser: Browser, scheme: str):
    # axe itself writes markup, which the page's own policy forbids.
    page, _ = opened(browser, address, color_scheme=scheme, bypass_csp=True)
    page.evaluate((HERE / "vendor" / "axe.min.js").read_text())

    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")

    assert [(one["id"], one["help"]) for one in found["violations"]] == []


def test_the_report_is_printed_whole(address: str, browser: Browser):
    page, _ = opened(browser, address)

    printed = page.pdf(format="A4")
    page.emulate_media(media="print")

    assert printed.startswith(b"%PDF")
    # Content that scrolls sideways on a screen would be cut off on paper.
    assert page.evaluate(
        "[...document.querySelectorAll('.charts .wide')].every(e => e.scrollWidth <= e.clientWidth)"
    )


def opened(browser: Browser, address: str, **context: Any) -> tuple[Page, list[str]]:
    """The page, and the browser's errors."""
    page = browser.new_context(**context).new_page()
    complaints: list[str] = []
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.goto(address)
    return page, complaints
