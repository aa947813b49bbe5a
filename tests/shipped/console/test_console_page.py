"""The console in a real Chromium, on a real Holdfast: its views, buttons and restrictions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Error, Page, Route, expect

from tests.shipped.console.console_browser import (
    BUTTONS,
    HEALTH,
    PAYMENT,
    Console,
    ConsoleStack,
    console,
    drill_titles,
)
from tests.support.stack.drilling import begin, come_to_rest
from tests.support.stack.running_stack import wait_for

pytestmark = pytest.mark.needs("chromium")

HERE = Path(__file__).parent


# --- Loading ---------------------------------------------------------------------------------


def test_the_page_and_its_first_answers_are_small(seen: Console):
    page = seen.open(with_key=False)

    # The page, its files and the first answers, with their headers, in the sent form.
    loaded = page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".map(e => [e.name, e.transferSize])"
    )

    assert sum(size for _, size in loaded) < 150_000, loaded


# `python -m tests.bench console` holds the first paint to a second, on an idle machine.
def test_the_page_is_painted_before_any_figure_has_come(running: ConsoleStack, browser: Browser):
    with console(browser, running.local_stack) as seen:
        held: list[Route] = []
        asked = re.compile(r"/(console/state|console/payments|simulate|drills)(\?|/|$)")
        seen.page.route(asked, lambda route: held.append(route))

        seen.page.goto(running.local_stack.ops_url + "/", wait_until="domcontentloaded")

        seen.page.wait_for_function("performance.getEntriesByType('paint').length > 0")
        expect(seen.page.get_by_role("button", name=PAYMENT, exact=True)).to_be_visible()
        expect(seen.page.locator("#updated")).not_to_have_text("Live")
        seen.page.unroute_all(behavior="ignoreErrors")


def test_everything_comes_from_the_ops_plane_itself(seen: Console):
    asked: list[str] = []
    seen.page.on("request", lambda request: asked.append(request.url))

    seen.open()

    assert asked
    assert all(url.startswith(seen.local_stack.ops_url) for url in asked)


def test_file_is_compressed_only_for_clients_that_accept_it(
    running: ConsoleStack,
):
    url = running.local_stack.ops_url + "/console/static/app.js"

    packed, plain = (
        requests.get(url, headers={"Accept-Encoding": wanted}, timeout=60)
        for wanted in ("gzip", "identity")
    )

    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert packed.text == plain.text
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 2


@pytest.mark.parametrize(
    "planted",
    [
        "document.body.innerHTML = '<b>text</b>'",
        "document.body.setAttribute('onclick', 'window.ran = true')",
        "document.body.append(Object.assign(document.createElement('script'), {text: '1'}))",
    ],
)
def test_text_can_become_neither_markup_nor_code(
    running: ConsoleStack, browser: Browser, planted: str
):
    with console(browser, running.local_stack) as seen:
        page = seen.open(with_key=False)

        with pytest.raises(Error, match="Trusted"):
            page.evaluate(planted)


def test_markup_in_a_payments_own_words_stays_text(running: ConsoleStack, seen: Console):
    markup = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    running.local_stack.pay(reference=markup, metadata={markup[:40]: markup})
    page = seen.open()

    page.get_by_role("cell", name=markup).first.click()

    expect(page.get_by_text(markup).first).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "owned"


def test_the_page_may_not_be_framed_stored_or_sniffed(running: ConsoleStack):
    answer = requests.get(running.local_stack.ops_url + "/", timeout=60)

    policy = answer.headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "frame-ancestors 'none'", "require-trusted-types-for"):
        assert part in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# --- The key ---------------------------------------------------------------------------------


def test_payments_are_shown_to_nobody_without_an_operators_key(running: ConsoleStack):
    for method, path in (("GET", "/console/payments"), ("POST", "/console/payments")):
        answer = requests.request(method, running.local_stack.ops_url + path, timeout=60)

        assert answer.status_code == 401


def test_wrong_key_is_refused_with_a_reason_and_right_one_works(
    running: ConsoleStack, browser: Browser
):
    with console(browser, running.local_stack) as seen:
        page = seen.open(with_key=False)
        seen.press(PAYMENT)
        page.get_by_label("API key", exact=True).fill("hf_test_wrong")
        seen.press("Use this key")
        expect(page.locator("#key-error")).to_contain_text("That key is unknown")

        page.get_by_label("API key", exact=True).fill(running.local_stack.api_key)
        seen.press("Use this key")

        # After the key is entered, the requested action continues without another click.
        expect(page.locator("#stage .chip").first).to_have_text("succeeded")
        expect(page.locator("#key-dialog")).to_be_hidden()
        # The browser itself reports the 401, and no other error.
        assert all("401" in complaint for complaint in seen.complaints)


def test_a_key_that_was_revoked_is_forgotten_and_asked_for(running: ConsoleStack, browser: Browser):
    with console(browser, running.local_stack) as seen:
        seen.page.add_init_script("sessionStorage.setItem('holdfast.operator_key', 'hf_test_old')")
        page = seen.open(with_key=False)

        expect(page.locator("#key-error")).to_have_text("That key is no longer valid.")

        assert page.evaluate("sessionStorage.getItem('holdfast.operator_key')") is None


# --- The buttons -----------------------------------------------------------------------------


def test_test_payment_uses_the_rest_api_and_shows_its_timeline(seen: Console):
    page = seen.open()

    seen.press(PAYMENT)

    expect(page.locator("#stage .steps li")).to_have_count(3)
    expect(page.locator("#stage .steps li").last).to_contain_text("succeeded")
    payment = page.locator("#stage dd").nth(1).inner_text()
    assert seen.local_stack.get(f"/v1/payments/{payment}").json()["status"] == "succeeded"
    expect(page.locator("#payments tr").first).to_contain_text("USD 1.00")


def test_the_health_button_checks_every_component_now(seen: Console):
    page = seen.open()

    seen.press(HEALTH)

    expect(page.locator("#stage .marks li")).to_have_count(6)
    expect(page.locator("#stage .marks")).to_contain_text("database pass")


# --- Live updates ----------------------------------------------------------------------------


def test_the_charts_move_with_the_payments_of_all_workers(seen: Console):
    page = seen.open()
    rate = page.locator("figure", has_text="Payments by outcome")
    before = rate.locator("canvas").evaluate("canvas => canvas.toDataURL()")

    for number in range(12):
        assert seen.local_stack.pay(f"charted-{number}").status_code == 201

    expect(rate.locator("li").first).not_to_have_text(re.compile(r"Succeeded 0/s"))
    page.wait_for_function(
        "before => [...document.querySelectorAll('figure')]"
        ".find(figure => figure.textContent.includes('Payments by outcome'))"
        ".querySelector('canvas').toDataURL() !== before",
        arg=before,
    )


def test_a_page_opened_later_shows_what_was_before(running: ConsoleStack):
    def rows(**since: Any) -> list[list[Any]]:
        answer = requests.get(
            running.local_stack.ops_url + "/console/state", since, timeout=60
        ).json()
        return list(answer["history"]["rows"])

    shown = wait_for(lambda: found if len(found := rows()) > 5 else None)
    newest = shown[-1][0]
    later = wait_for(lambda: rows(boot=_boot(running), after=newest))

    assert all(row[0] > newest for row in later)


def test_payment_opens_in_place_and_stays_open_on_updates(seen: Console):
    first = seen.local_stack.pay(reference="opened").json()["id"]
    page = seen.open()
    page.locator(f'#payments button[title="{first}"]').click()
    expect(page.locator(f"#steps-{first} .steps li")).to_have_count(3)

    second = seen.local_stack.pay().json()["id"]

    expect(page.locator(f'#payments button[title="{second}"]')).to_be_visible()
    expect(page.locator(f"#steps-{first} .steps li")).to_have_count(3)


def test_what_a_caller_wrote_is_shown_as_text(seen: Console):
    seen.local_stack.pay(reference="<img src=x onerror=alert(1)>")

    page = seen.open()

    expect(page.locator("#payments")).to_contain_text("<img src=x onerror=alert(1)>")


def test_the_drills_are_listed_with_a_button_each(seen: Console, running: ConsoleStack):
    page = seen.open()

    drills = page.locator("#drills tr")
    expect(drills.first).to_be_visible()
    names = drill_titles(running)
    assert drills.count() == len(names)
    expect(page.get_by_role("button", name=f"Run the drill {names[0]}")).to_be_visible()


# --- Accessibility ---------------------------------------------------------------------------


def test_a_phone_shows_everything_without_scrolling_sideways(
    running: ConsoleStack, browser: Browser
):
    with console(browser, running.local_stack, viewport={"width": 360, "height": 740}) as seen:
        page = seen.open()
        seen.press(PAYMENT)
        expect(page.locator("#stage .steps li")).to_have_count(3)

        width = page.evaluate("document.documentElement.scrollWidth")

        assert width == 360
        buttons = [page.get_by_role("button", name=name, exact=True) for name in BUTTONS]
        for button in (*buttons, page.locator("#drills button").first):
            box = button.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
        assert seen.complaints == []


def test_everything_can_be_done_with_the_keyboard_alone(seen: Console):
    page = seen.open(with_key=False)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")

    _tab_to(page, PAYMENT)
    page.keyboard.press("Enter")
    page.keyboard.type(seen.local_stack.api_key)
    page.keyboard.press("Enter")

    expect(page.locator("#stage .chip").first).to_have_text("succeeded")
    # Focus returns to the button, not to the top of the page.
    expect(page.get_by_role("button", name=PAYMENT, exact=True)).to_be_focused()
    _tab_to(page, re.compile("pay_"))
    page.keyboard.press("Enter")
    expect(page.locator("#payments .steps li").first).to_be_visible()
    expect(page.locator("#payments button").first).to_be_focused()


def test_theme_follows_the_system_and_a_choice_is_remembered(
    running: ConsoleStack, browser: Browser
):
    with console(browser, running.local_stack, color_scheme="dark") as seen:
        page = seen.open()
        assert _background(page) == "rgb(13, 17, 23)"

        seen.press("Use light colours")
        page.reload()
        expect(page.locator("#updated")).to_have_text("Live")

        assert _background(page) == "rgb(244, 246, 248)"
        assert seen.complaints == []


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1440),
        ("dark", 360),
        # The two above have both schemes and both widths.
        pytest.param("dark", 1440, marks=pytest.mark.long),
        pytest.param("light", 360, marks=pytest.mark.long),
    ],
)
def test_axe_finds_nothing(running: ConsoleStack, browser: Browser, scheme: str, width: int):
    looks = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    # axe itself writes markup, which the page's own policy forbids.
    with console(browser, running.local_stack, **looks, bypass_csp=True) as seen:
        page = seen.open()
        seen.press(PAYMENT)
        expect(page.locator("#stage .steps li")).to_have_count(3)
        seen.press(HEALTH)
        expect(page.locator("#stage .marks li")).to_have_count(6)
        page.locator("#payments button").first.click()
        expect(page.locator("#payments .steps li").first).to_be_visible()
        _show_a_finished_run(page, running)
        page.evaluate((HERE / "vendor" / "axe.min.js").read_text())

        assert _axe_findings(page) == []

        page.locator("#key-button").click()
        assert _axe_findings(page) == []


# --- A page that stays open ------------------------------------------------------------------


def test_a_page_left_open_does_not_grow(seen: Console):
    page = seen.open()
    page.clock.install()
    page.reload()
    expect(page.locator("#updated")).to_have_text("Live")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    _let_pass(page, polls=10)
    before = _held(devtools)
    _let_pass(page, polls=40)
    after = _held(devtools)

    assert after["JSEventListeners"] <= before["JSEventListeners"] + 5
    assert after["Nodes"] <= before["Nodes"] + 100
    assert after["JSHeapUsedSize"] <= before["JSHeapUsedSize"] + 1_000_000


def test_page_shows_a_missing_answer_and_recovers(running: ConsoleStack, browser: Browser):
    with console(browser, running.local_stack) as seen:
        page = seen.open()
        running.stop()
        try:
            expect(page.locator("#stale")).to_contain_text("does not answer")
            expect(page.locator("#state")).to_have_text("Not known whether money is safe")
            expect(page.locator("#updated")).to_contain_text("As of")
        finally:
            # The other tests of this file need it.
            running.start()

        expect(page.locator("#stale")).to_be_hidden()
        expect(page.locator("#updated")).to_have_text("Live")
        expect(page.locator("#state")).not_to_have_text("Not known whether money is safe")
        assert all("ERR_CONNECTION" in complaint for complaint in seen.complaints)


def _boot(running: ConsoleStack) -> str:
    return str(
        requests.get(running.local_stack.ops_url + "/console/state", timeout=60).json()["boot"]
    )


def _tab_to(page: Page, name: str | re.Pattern[str]) -> None:
    wanted = page.get_by_role("button", name=name, exact=True).first
    for _ in range(80):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{name} cannot be reached with Tab")


def _background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def _show_a_finished_run(page: Page, running: ConsoleStack) -> None:
    """A simulation that is stopped at once, so that its evidence is on the page too."""
    # It lasts until the page, which looks every ten seconds, has seen it.
    begin(running.local_stack, "connection-error", ttl_s=120)
    expect(page.locator("#stage .log li").first).to_be_visible()
    page.locator("#stop-all").click()
    expect(page.locator("#simulation")).to_be_hidden(timeout=120_000)
    come_to_rest(running.local_stack)


def _axe_findings(page: Page) -> list[str]:
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {json.dumps([node['target'] for node in one['nodes']])}"
        for one in found["violations"]
    ]


def _let_pass(page: Page, *, polls: int) -> None:
    """Advance the page's clock, and wait for the answer of each poll."""
    for _ in range(polls):
        with page.expect_response(re.compile("/console/state")):
            page.clock.run_for(2100)


def _held(devtools: Any) -> dict[str, float]:
    devtools.send("HeapProfiler.collectGarbage")
    held = devtools.send("Performance.getMetrics")["metrics"]
    return {one["name"]: one["value"] for one in held}
