"""The bounds of the checks: a figure at a limit has already crossed it."""

from __future__ import annotations

import pytest

from service.observability.checks import Bounds


@pytest.mark.parametrize(
    ("figure", "status"), [(0.0, "pass"), (2.0, "warn"), (59.9, "warn"), (60.0, "fail")]
)
def test_bounds_of_a_figure_that_worsens_as_it_grows(figure, status):
    assert Bounds(warn=2.0, fail=60.0).status(figure) == status


@pytest.mark.parametrize(("figure", "status"), [(0.5, "pass"), (0.05, "warn"), (0.01, "fail")])
def test_bounds_of_a_figure_that_worsens_as_it_shrinks(figure, status):
    assert Bounds(warn=0.10, fail=0.02).status(figure) == status
