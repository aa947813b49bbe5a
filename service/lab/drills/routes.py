"""The addresses of simulations and drills, on the ops plane, where simulation is enabled."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Busy, NotFound
from service.lab.drills import report
from service.lab.drills.document import DrillReport, from_json, to_json
from service.lab.drills.page import PAGE_CSP, render_page
from service.lab.drills.plan import LOAD_PER_S_MAX, SIMULATIONS, Plan, takes_s
from service.lab.drills.preflight import reasons
from service.lab.drills.run import DrillRequest
from service.lab.drills.runs import DrillRuns
from service.lab.faultproxy.client import FaultClient, ProxyGone
from service.lab.faultproxy.faults import TTL_MAX_S
from service.payments.merchants import PLATFORM
from service.resilience.deadline import Deadline
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.parts import parts_of
from service.web.openapi.operation import Operation, documented
from service.web.ops.plane import require_scope

# The report page of a drill polls; a simulation with `wait=1` takes as long as its plan.
WAIT_MAX_S = 600.0
TTL_S = 30
REQUEST_TIMEOUT_S = 5.0
# This many verdicts of a drill show whether it improves or degrades.
TREND_RUNS = 8

Model = TypeVar("Model", bound=BaseModel)
Scope = Literal["instance", "pair"]
_Reason = Annotated[str, Field(max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class SimulationWish(_Body):
    """The options of a simulation; all are optional."""

    ttl_s: Annotated[int, Field(ge=1, le=TTL_MAX_S)] = TTL_S
    load_rps: Annotated[int | None, Field(ge=1, le=LOAD_PER_S_MAX)] = None
    scope: Scope | None = None
    reason: _Reason = ""


class DrillWish(_Body):
    """The drill to run and its options."""

    drill: Annotated[str, Field(max_length=40)]
    scope: Scope | None = None
    dry_run: bool = False
    blind: bool = False
    reason: _Reason = ""
    fault_s: Annotated[float | None, Field(ge=1, le=TTL_MAX_S)] = None
    load_rps: Annotated[int | None, Field(ge=1, le=LOAD_PER_S_MAX)] = None


class Lever(_Body):
    """Set or release the kill switch."""

    engaged: bool
    reason: _Reason = ""


class Answer(_Body):
    """A guess at the fault of a blind game day."""

    name: Annotated[str, Field(max_length=40)]


blueprint = Blueprint(
    "simulation", __name__, static_folder="static", static_url_path="/drills/static"
)


@blueprint.post("/simulate/<name>")
@documented(
    Operation(
        summary="Inject one of the incident's faults; `?wait=1` answers at its end",
        scope="platform",
        body=SimulationWish,
        example={"ttl_s": 10, "load_rps": 5, "reason": "rehearsal"},
        answers={200: ("Ended, with the evidence", None), 202: ("Started", None)},
        sends={202: ("Location", "Retry-After")},
        problems=("preflight_refused",),
    )
)
def simulate(name: str) -> Response:
    by = require_scope(PLATFORM).actor()
    drill_runs = parts_of(DrillRuns)
    if name not in SIMULATIONS:
        raise NotFound(f"This simulation does not exist. Available: {', '.join(SIMULATIONS)}.")
    body = _read(SimulationWish)
    drill_request = DrillRequest(
        name=name,
        kind="simulation",
        scope=body.scope or drill_runs.default_scope,
        reason=body.reason,
        requested_by=by.name,
        actor=by,
        fault_s=body.ttl_s,
        load_per_s=body.load_rps,
    )
    run = drill_runs.begin(drill_request, _deadline())
    if request.args.get("wait") == "1" and run.ended.wait(WAIT_MAX_S):
        return _json(run.report())
    return _accepted(run.report(), "simulate")


@blueprint.get("/simulate")
@documented(
    Operation(
        summary="The current and recent runs, the kill switch and the links",
        answers={200: ("The current state", None)},
        problems=("forbidden",),
    )
)
def overview() -> Response:
    drill_runs = parts_of(DrillRuns)
    running = drill_runs.running
    return _json(
        {
            "running": running.report() if running else None,
            "recent": _or_none(lambda: drill_runs.recent(_deadline())) or [],
            "lever": _kill_switch(drill_runs),
            "links": _links(drill_runs),
            "default_scope": drill_runs.default_scope,
            "simulations": [_shown_simulation(drill_runs.catalogue[name]) for name in SIMULATIONS],
        }
    )


@blueprint.get("/simulate/<run_id>")
@documented(
    Operation(
        summary="One simulation, with its evidence",
        answers={200: ("The current state", None)},
        problems=("forbidden",),
    )
)
def show_simulation(run_id: str) -> Response:
    drill_runs = parts_of(DrillRuns)
    return _json(drill_runs.find(run_id, _deadline()))


@blueprint.delete("/simulate")
@documented(
    Operation(
        summary="Stop everything", scope="platform", answers={200: ("The stopped runs", None)}
    )
)
def stop_everything() -> Response:
    by = require_scope(PLATFORM).actor()
    drill_runs = parts_of(DrillRuns)
    return _json({"stopped": drill_runs.stop_all(by, _deadline())})


@blueprint.put("/simulate/lever")
@documented(
    Operation(
        summary="Set the kill switch, or release it",
        scope="platform",
        body=Lever,
        example={"engaged": True, "reason": "an incident of our own"},
        answers={200: ("The kill switch's state", None)},
    )
)
def set_kill_switch() -> Response:
    by = require_scope(PLATFORM).actor()
    drill_runs = parts_of(DrillRuns)
    body = _read(Lever)
    drill_runs.context.store.set_kill_switch(
        engaged=body.engaged,
        reason=body.reason,
        by=by.name,
        deadline=_deadline(),
        actor=by,
    )
    if body.engaged:
        drill_runs.stop_all(by, _deadline())
    return _json(drill_runs.context.preflight.kill_switch(_deadline()))


@blueprint.get("/drills")
@documented(
    Operation(
        summary="The catalogue, with each drill's last verdict",
        answers={200: ("The current state", None)},
        problems=("forbidden",),
    )
)
def list_drills() -> Response:
    drill_runs = parts_of(DrillRuns)
    running = drill_runs.running
    last = _or_none(lambda: drill_runs.context.store.last_verdicts(_deadline())) or {}
    trends = _or_none(lambda: drill_runs.context.store.trends(TREND_RUNS, _deadline())) or {}
    return _json(
        {
            "drills": [
                {
                    **_shown_drill(plan, takes_s(plan, drill_runs.catalogue)),
                    "last": last.get(plan.name),
                    "trend": trends.get(plan.name, []),
                }
                for plan in drill_runs.catalogue.values()
            ],
            "running": running.report() if running else None,
            "recent": _or_none(lambda: drill_runs.recent(_deadline(), 50)) or [],
            "lever": _kill_switch(drill_runs),
        }
    )


@blueprint.post("/drills")
@documented(
    Operation(
        summary="Run a drill with a verdict; `dry_run` only runs the preflight checks",
        scope="platform",
        body=DrillWish,
        example={"drill": "payment-timeout", "dry_run": True},
        answers={200: ("The results of a dry run", None), 202: ("Started", None)},
        sends={202: ("Location", "Retry-After")},
        problems=("preflight_refused",),
    )
)
def drill() -> Response:
    by = require_scope(PLATFORM).actor()
    drill_runs = parts_of(DrillRuns)
    body = _read(DrillWish)
    drill_request = DrillRequest(
        name=body.drill,
        kind="drill",
        scope=body.scope or drill_runs.default_scope,
        reason=body.reason,
        requested_by=by.name,
        actor=by,
        fault_s=body.fault_s,
        load_per_s=body.load_rps,
        blind=body.blind,
    )
    if body.dry_run:
        checks = drill_runs.preflight(drill_request, _deadline())
        return _json(
            {
                "drill": drill_request.name,
                "preflight": checks,
                "would_begin": not reasons(checks),
            }
        )
    return _accepted(drill_runs.begin(drill_request, _deadline()).report(), "drills")


@blueprint.get("/drills/<run_id>")
@documented(
    Operation(
        summary="One drill's report; `?format=html`, `markdown` or `junit` for people and CI",
        answers={200: ("The report", None)},
        problems=("forbidden",),
    )
)
def show_drill(run_id: str) -> Response:
    drill_runs = parts_of(DrillRuns)
    found = drill_runs.find(run_id, _deadline())
    match request.args.get("format", "json"):
        case "markdown":
            text = report.markdown(from_json(DrillReport, found))
            return Response(text, content_type="text/markdown")
        case "junit":
            return Response(
                report.junit(from_json(DrillReport, found)), content_type="application/xml"
            )
        case "html":
            page = render_page(from_json(DrillReport, found))
            answer = Response(page, content_type="text/html; charset=utf-8")
            answer.headers["Content-Security-Policy"] = PAGE_CSP
            return answer
    return _json(found)


@blueprint.delete("/drills/<run_id>")
@documented(
    Operation(summary="Stop a drill", scope="platform", answers={200: ("Its final state", None)})
)
def stop_drill(run_id: str) -> Response:
    by = require_scope(PLATFORM).actor()
    drill_runs = parts_of(DrillRuns)
    run = drill_runs.live(run_id)
    drill_runs.stop(run, by, _deadline())
    run.ended.wait(REQUEST_TIMEOUT_S)
    return _json(run.report())


@blueprint.post("/drills/<run_id>/answer")
@documented(
    Operation(
        summary="Guess the fault of a blind game day",
        scope="platform",
        body=Answer,
        example={"name": "payment-timeout"},
        answers={200: ("Whether the guess is right, and its time", None)},
    )
)
def name_fault(run_id: str) -> Response:
    require_scope(PLATFORM)
    drill_runs = parts_of(DrillRuns)
    body = _read(Answer)
    return _json(drill_runs.name_fault(drill_runs.live(run_id), body.name))


def _kill_switch(drill_runs: DrillRuns) -> dict[str, Any]:
    unknown = {"engaged": None, "reason": "The database does not answer.", "by": None}
    return _or_none(lambda: drill_runs.context.preflight.kill_switch(_deadline())) or {
        **unknown,
        "at": None,
    }


def _links(drill_runs: DrillRuns) -> dict[str, Any] | None:
    control_path, running = drill_runs.context.preflight.control_path, drill_runs.running
    # The links must not reveal the fault of a blind game day.
    if control_path is None or (running is not None and running.is_hidden):
        return None
    try:
        with FaultClient(control_path) as onlooker:
            return onlooker.describe()
    except ProxyGone:
        return None


def _shown_simulation(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "title": plan.title,
        "incident": plan.incident,
        "ttl_s": TTL_S,
        "load_rps": plan.load_per_s,
        "scopes": list(plan.scopes),
    }


def _shown_drill(plan: Plan, seconds: float) -> dict[str, Any]:
    return {
        "name": plan.name,
        "title": plan.title,
        "hypothesis": plan.hypothesis,
        "runbook": plan.runbook,
        "takes_s": round(seconds),
        "scopes": list(plan.scopes),
    }


def _accepted(report: DrillReport, where: str) -> Response:
    answer = _json(report, 202)
    answer.headers["Location"] = f"/{where}/{report.id}"
    answer.headers["Retry-After"] = "1"
    return answer


def _json(document: Any, status: int = 200) -> Response:
    return Response(
        json.dumps(document, default=to_json) + "\n", status, content_type="application/json"
    )


Found = TypeVar("Found")


def _or_none(ask: Callable[[], Found]) -> Found | None:
    """The result, or None without a database: operators need this plane most during an outage."""
    try:
        return ask()
    except Busy:
        return None


def _read(model: type[Model]) -> Model:
    """The request's body; a call without a body takes the defaults."""
    return validated(model, parse_object(read_body() or b"{}"))


def _deadline() -> Deadline:
    return Deadline.after(REQUEST_TIMEOUT_S)
