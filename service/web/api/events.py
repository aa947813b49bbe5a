"""The event feed for programs: every event of the merchant, oldest first."""

from __future__ import annotations

from flask import Blueprint, Response

from service.ids import parse_id
from service.web.api.movement_schemas import EventPage, EventQuery, present_feed_event
from service.web.api.plane import data_plane
from service.web.http.answers import json_answer
from service.web.http.queries import read_query
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import Operation, documented

blueprint = Blueprint("events", __name__)


@blueprint.get("/v1/events")
@documented(
    Operation(
        summary="Read events, oldest first, from a position",
        scope="read",
        query=EventQuery,
        answers={200: ("The next events; continue from `next_cursor`", EventPage)},
    )
)
def list_events() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    query = read_query(EventQuery)
    page = plane.feed.read(
        caller.merchant_id,
        deadline,
        after=parse_id(query.cursor, "evt_") if query.cursor else None,
        limit=query.limit,
    )
    cursor = page.next_cursor
    return json_answer(
        {
            "data": [present_feed_event(event) for event in page.events],
            "has_more": page.has_more,
            "next_cursor": None if cursor is None else f"evt_{cursor.hex}",
        }
    )
