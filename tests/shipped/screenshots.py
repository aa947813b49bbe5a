"""Draws docs/screenshots from a running house: `make screenshots`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import requests
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.running_house import House, running_house
from tests.shipped.console_browser import CHROMIUM, FLAGS, console

SHOTS = Path(__file__).parents[2] / "docs" / "screenshots"
# A reader looks at them beside the text; more colours would only be more bytes.
COLOURS = 128


def main() -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        running_house(Path(home) / "house") as house,
        sync_playwright() as playwright,
    ):
        _live_a_little(house)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for name, options in {
            "console": {"viewport": {"width": 1440, "height": 900}},
            "console-dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
            "console-phone": {"viewport": {"width": 360, "height": 740}},
        }.items():
            with console(browser, house, **options) as seen:
                page = seen.open()
                seen.press("Process a Test Payment")
                page.locator("#stage .steps li").nth(2).wait_for()
                page.evaluate("scrollTo(0, 0)")
                _save(page.screenshot(full_page=name == "console"), name)
        browser.close()


def _live_a_little(house: House) -> None:
    for number in range(12):
        house.pay(reference=f"order-{number}")
    house.pay(payment_method="pm_card_chargeDeclined", reference="order-12")
    requests.post(
        f"{house.ops_url}/simulate/connection-error?wait=1",
        json={"ttl_s": 6},
        headers={"Authorization": f"Bearer {house.api_key}"},
        timeout=120,
    ).raise_for_status()


def _save(png: bytes, name: str) -> None:
    path = SHOTS / f"{name}.png"
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(SHOTS.parents[1])}  {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
