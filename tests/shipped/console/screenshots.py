"""Draws docs/screenshots from a running local stack with payments: `make screenshots`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from service.lab.observe.traffic import Traffic
from tests.shipped.console.console_browser import chromium, console
from tests.support.stack.running_stack import RunningStack, running_stack

SHOTS = Path(__file__).parents[3] / "docs" / "screenshots"
# The pictures illustrate the text; more colours would only add bytes.
COLOURS = 128
WIDE = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}}
PAYMENTS_PER_S = 3
# A wait, so that the charts have data.
LIVED_MS = 45_000
RUN_WITHIN_MS = 120_000
# From the verdict down to the first payments; the drills follow below.
README_HEIGHT = 1500


def main() -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        running_stack(Path(home) / "local_stack") as local_stack,
        chromium() as browser,
        Traffic(local_stack.url, local_stack.api_key, per_s=PAYMENTS_PER_S),
    ):
        _by_day(browser, local_stack)
        _by_night(browser, local_stack)
        with console(browser, local_stack, **PHONE) as seen:
            seen.open()
            _save(seen.page, "console-phone")


def _by_day(browser: Browser, local_stack: RunningStack) -> None:
    """The whole page after a drill, and a picture of only its evidence."""
    with console(browser, local_stack, **WIDE) as seen:
        page = seen.open()
        page.wait_for_timeout(LIVED_MS)
        page.get_by_label("Fault lasts").select_option("10")
        seen.press("Test Payment Timeout (5000ms)")
        verdict = page.locator("#stage .run-head .chip")
        expect(verdict).to_have_text("SHOWN", timeout=RUN_WITHIN_MS)
        _save(page, "console-evidence", of="#stage")
        expect(page.locator("#state")).to_have_text("Money is safe", timeout=RUN_WITHIN_MS)
        # The evidence has a separate picture.
        page.reload()
        expect(page.locator("#state")).to_have_text("Money is safe", timeout=RUN_WITHIN_MS)
        seen.press("Process a Test Payment")
        expect(page.locator("#stage .steps li")).to_have_count(3)
        _save(page, "console", height=README_HEIGHT)


def _by_night(browser: Browser, local_stack: RunningStack) -> None:
    """The dark page during a fault: the banner, the breaker, the queue."""
    with console(browser, local_stack, **WIDE, color_scheme="dark") as seen:
        page = seen.open()
        seen.press("Test HTTPSConnectionPool Error")
        phase = page.locator("#stage .phases [aria-current]")
        expect(phase).to_have_text("fault", timeout=RUN_WITHIN_MS)
        page.wait_for_timeout(8000)
        page.evaluate("scrollTo(0, 0)")
        _save(page, "console-dark")
        page.locator("#stop-all").click()
        expect(page.locator("#simulation")).to_be_hidden(timeout=RUN_WITHIN_MS)


def _save(page: Page, name: str, *, of: str | None = None, height: int | None = None) -> None:
    """The window, one element `of` the page, or the page from its top down to `height`."""
    if of:
        png = page.locator(of).screenshot()
    elif height:
        # Otherwise the header, which stays in the window, covers the content.
        page.evaluate("scrollTo(0, 0)")
        top = {"x": 0, "y": 0, "width": WIDE["viewport"]["width"], "height": height}
        png = page.screenshot(full_page=True, clip=top)
    else:
        png = page.screenshot()
    path = SHOTS / f"{name}.png"
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(SHOTS.parents[1])}  {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
