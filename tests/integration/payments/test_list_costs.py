"""No list of the API reads more where a merchant has more: each of its pages comes by an index."""

from __future__ import annotations

from service.database.direct import cursor_to
from tests.support.list_costs import costs, fill

ROWS = 20_000
# A page of 20 rows with their index, for each of 11 statuses; a scan would read 400 and more.
PAGES_MAX = 120


def test_no_list_reads_more_where_there_is_more(owner_url):
    with cursor_to(owner_url) as owner:
        merchant = fill(owner, ROWS)

        measured = list(costs(owner, merchant, ROWS))

    assert len(measured) == 38
    too_many = {
        f"{cost.name} ({cost.kind})": cost.plan for cost in measured if cost.pages > PAGES_MAX
    }
    assert too_many == {}, "\n\n".join(too_many.values())
