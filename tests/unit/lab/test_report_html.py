"""A run's report as HTML is whole at any moment of the run, and escapes what people wrote."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from service.lab.drills.document import DrillCheckResult
from service.lab.drills.page import render_page
from service.lab.drills.plan import read_catalogue
from service.lab.drills.run import DrillRequest, Run

SCRIPT = '<script>alert("x")</script>'


class Elements(HTMLParser):
    """The open elements and the texts of a page."""

    VOID = frozenset({"meta", "link", "line"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def a_run(name: str = "payment-timeout") -> Run:
    plan = read_catalogue(None)[name]
    request = DrillRequest(
        name=name, kind="drill", scope="pair", reason=SCRIPT, requested_by=SCRIPT
    )
    return Run(plan, request)


@pytest.mark.parametrize("name", ["payment-timeout", "game-day"])
def test_a_run_that_has_just_begun_has_a_whole_page(name):
    page = Elements(render_page(a_run(name).whole()))

    assert page.open == []
    assert "Still running." in page.texts


def test_what_people_wrote_is_text_and_never_markup():
    run = a_run()
    run.tell(SCRIPT)
    run.set(
        parts=(replace(run.report().brief(), title=SCRIPT),),
        expectations=(
            DrillCheckResult(ok=True, text=SCRIPT, promql=SCRIPT, value=1.0, min=None, max=2.0),
        ),
    )
    run.finish("HELD", SCRIPT)

    page = Elements(render_page(run.whole()))

    assert page.open == []
    assert "script" not in page.seen
    assert page.texts.count(SCRIPT) == 7
