"""Simulations and drills from the console in a real Chromium: progress, evidence, and end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.shipped.console.console_browser import (
    CONNECTION,
    POOL,
    TIMEOUT,
    Console,
    ConsoleStack,
    console,
    drill_titles,
)
from tests.support.stack.drilling import come_to_rest

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture(autouse=True)
def _at_rest(running: ConsoleStack) -> Iterator[None]:
    """The shared instance without a running drill, after any end of the last test."""
    yield
    come_to_rest(running.local_stack)


def test_payment_timeout_shows_progress_and_then_the_evidence(seen: Console):
    page = seen.open()
    page.get_by_label("Fault lasts").select_option("10")

    seen.press(TIMEOUT)

    expect(page.locator("#simulation")).to_contain_text("Simulation running")
    expect(page.locator("#stage .log li").first).to_be_visible()
    # The other buttons show the reason why they are disabled.
    button = page.get_by_role("button", name=POOL, exact=True)
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(page.locator("#rehearsal-note")).to_contain_text("A drill or simulation is running")
    verdict = page.locator("#stage .run-head .chip")
    expect(verdict).to_have_text("SHOWN", timeout=90_000)
    evidence = page.locator("#stage .evidence")
    expect(evidence).to_contain_text("Payment service connection failed - timeout after 5000ms")
    expect(evidence).to_contain_text("HTTPSConnectionPool(")
    expect(evidence).to_contain_text("holdfast_provider_timeouts_total")
    expect(evidence).to_contain_text("callers got")
    expect(page.locator("#simulation")).to_be_hidden()
    # The live figures changed in the same moments.
    expect(page.locator("#errors tr").first.locator("td").nth(1)).not_to_have_text("0")


@pytest.mark.parametrize(
    ("button", "words", "counter"),
    [
        (
            CONNECTION,
            "ConnectionError: HTTPSConnectionPool timeout",
            "holdfast_provider_connection_errors_total",
        ),
        pytest.param(
            *(POOL, "connection pool exhausted", "holdfast_db_pool_timeouts_total"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_other_two_errors_show_their_words_and_figures_too(
    seen: Console, button: str, words: str, counter: str
):
    page = seen.open()
    page.get_by_label("Fault lasts").select_option("10")

    seen.press(button)

    expect(page.locator("#stage .run-head .chip")).to_have_text("SHOWN", timeout=90_000)
    expect(page.locator("#stage .incident")).to_contain_text(words)
    expect(page.locator("#stage .evidence")).to_contain_text(counter)
    expect(page.locator("#stage .evidence")).to_contain_text("callers got")


def test_an_outage_is_seen_in_every_chart_and_so_is_its_end(seen: Console):
    page = seen.open()
    # The longest fault: the test ends it after the page has shown all data, also on a slow machine.
    page.get_by_label("Fault lasts").select_option("60")

    seen.press(TIMEOUT)

    # Answers take the whole timeout, the breaker opens, payments are queued.
    expect(legend(page, "Answer times")).to_contain_text(re.compile(r"p99 [2-9]\d{3}"))
    expect(legend(page, "Circuit breaker")).to_contain_text("open")
    expect(legend(page, "Queue and doubt")).not_to_contain_text("Queued 0")
    expect(legend(page, "Payments by outcome")).not_to_contain_text("Queued 0/s")
    expect(page.locator("#state")).not_to_have_text("Money is safe")

    page.locator("#stop-all").click()

    expect(page.locator("#stage .run-head .chip")).to_have_text("ABORTED", timeout=90_000)
    expect(legend(page, "Circuit breaker")).to_contain_text("closed")
    expect(legend(page, "Queue and doubt")).to_contain_text("Queued 0")


def test_fault_on_two_copies_is_shown_for_both(seen: Console):
    page = seen.open()
    page.get_by_role("combobox", name="On", exact=True).select_option("pair")
    page.get_by_label("Fault lasts").select_option("10")

    seen.press(CONNECTION)

    expect(page.locator("#simulation")).to_contain_text("scope pair")
    expect(page.locator("#stage .run-head .chip")).to_have_text("SHOWN", timeout=120_000)
    sides = page.locator("#stage .side h4")
    expect(sides).to_have_text(["Evidence: experiment", "Evidence: control"])
    expect(page.locator("#stage .side").nth(1).locator(".incident")).to_have_count(0)


def test_drill_is_run_and_stopped_and_its_verdict_stays_shown(seen: Console, running: ConsoleStack):
    page = seen.open()
    title = drill_titles(running)[0]

    page.get_by_role("button", name=f"Run the drill {title}").click()

    expect(page.locator("#simulation")).to_contain_text(f"Drill running: {title}")
    page.locator("#stop-all").click()
    expect(page.locator("#stage .run-head .chip")).to_have_text("ABORTED", timeout=90_000)
    row = page.locator("#drills tr", has_text=title).first
    expect(row.locator(".chip")).to_have_text("ABORTED")
    expect(row.locator(".dots i")).not_to_have_count(0)
    expect(row.get_by_role("link")).to_have_attribute("href", re.compile(r"/drills/run_\w+\?"))


def test_stop_everything_ends_a_simulation_with_its_evidence(seen: Console):
    page = seen.open()
    page.get_by_label("Fault lasts").select_option("60")
    seen.press(CONNECTION)
    expect(page.locator("#stage .phases [aria-current]")).to_have_text("fault")
    expect(page.locator("#errors [data-some]").first).to_be_visible()

    page.locator("#stop-all").click()

    expect(page.locator("#stage .run-head .chip")).to_have_text("ABORTED", timeout=90_000)
    expect(page.locator("#simulation")).to_be_hidden()
    expect(page.locator("#stage .evidence")).to_contain_text(
        "ConnectionError: HTTPSConnectionPool timeout"
    )


def test_second_page_shows_the_same_simulation(
    seen: Console, running: ConsoleStack, browser: Browser
):
    # The longest fault: the second page must be open before it ends.
    seen.open().get_by_label("Fault lasts").select_option("60")
    seen.press(CONNECTION)
    expect(seen.page.locator("#simulation")).to_contain_text("Simulation running")

    with console(browser, running.local_stack) as other:
        page = other.open(with_key=False)

        expect(page.locator("#simulation")).to_contain_text("Simulation running")
        expect(page.locator("#stage .log li").first).to_be_visible()
    seen.page.locator("#stop-all").click()
    expect(seen.page.locator("#simulation")).to_be_hidden()


def legend(page: Page, title: str) -> Any:
    """The text of a chart's newest row."""
    return page.locator("figure", has=page.locator("figcaption", has_text=title)).locator(".legend")
