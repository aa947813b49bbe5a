"""Observes a local stack: traffic, the three incidents in turn, and hints where to look."""

from __future__ import annotations

import contextlib
import http.client
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep, strftime
from typing import NoReturn

from service.lab.faultproxy.client import FaultClient, ProxyGone
from service.lab.local.stack import PartDied
from service.lab.observe.incidents import INCIDENTS, Incident
from service.lab.observe.site import Site, observed_stack
from service.lab.observe.traffic import Traffic
from service.settings import Settings, SettingsError

# Hold a fault until it has paged, or briefly for the console where no pager runs. The shipped
# rules wait a minute or two, and the limit of a fault is 300 s.
HOLD_S, HOLD_UNWATCHED_S = 240.0, 30.0
# Long enough to show the normal state: two scrapes and a rate.
QUIET_S, QUIET_HURRIED_S = 45.0, 5.0
# The breaker probes once a second, and the queue drains with a slow start.
RECOVERY_S, RECOVERY_HURRIED_S = 120.0, 25.0
HURRY_S = 1.0
# The routes group alerts for 10 s before they page; an alert that fires longer than this, this
# long into a fault, has paged in an earlier incident.
PAGED_WITHIN_S, NO_NEWS_S = 20.0, 45.0
LOOK_EVERY_S = 0.5
TO_INSTALL = (
    "apt-get install --no-install-recommends prometheus prometheus-alertmanager"
    "   (Debian, Ubuntu; brew install prometheus alertmanager)"
)
# A payment sent at once is queued for milliseconds; an older one really waits.
QUEUED_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveOptions:
    """The options of `observe`."""

    payments_per_s: float
    # Rules wait seconds instead of minutes.
    is_hurried: bool = False
    # End after the last incident instead of running until Ctrl-C.
    is_once: bool = False


# A failed or unreadable answer (ValueError) is treated as no answer.
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)


class _StopSignal(Exception):
    """A signal or Ctrl-C asks this process to stop."""


def observe(settings: Settings, environ: Mapping[str, str], options: ObserveOptions) -> int:
    """Start all parts and run the incidents; 0 after a stop, or when each incident has paged."""
    _require_playground(settings)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _raise_stop)
    _say("Starting Holdfast and its monitoring ...")
    hurry_s = HURRY_S if options.is_hurried else None
    try:
        with contextlib.ExitStack() as stack:
            site = stack.enter_context(observed_stack(settings, environ, _news, hurry_s=hurry_s))
            stack.callback(_deaf)
            _require_links(site)
            _say(_addresses(site, environ))
            return _run_incidents(site, options)
    except _StopSignal:
        return 0
    except (PartDied, ProxyGone) as error:
        _say(str(error))
        return 1


def _require_playground(settings: Settings) -> None:
    if settings.stripe_api_base is not None:
        raise SettingsError("observe sends payments: unset STRIPE_API_BASE to use the sandbox.")


def _require_links(site: Site) -> None:
    if site.run["fault_proxy_control"] is None:
        raise SettingsError("observe injects faults: HOLDFAST_SIMULATION_ENABLED must not be off.")


def _raise_stop(number: int, frame: object) -> NoReturn:
    raise _StopSignal


def _deaf() -> None:
    # A second Ctrl-C ends only this process; the parts then end with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _say("\nStopping everything ...")


def _run_incidents(site: Site, options: ObserveOptions) -> int:
    is_watched = site.urls.keys() >= {"prometheus", "alertmanager"}
    quiet_s = QUIET_HURRIED_S if options.is_hurried else QUIET_S
    recovery_s = RECOVERY_HURRIED_S if options.is_hurried else RECOVERY_S
    silent: list[str] = []
    with Traffic(site.run["url"], site.run["api_key"], per_s=options.payments_per_s) as traffic:
        _say(
            f"{options.payments_per_s:g} payments a second from now on; {quiet_s:.0f} s without a fault."
        )
        _wait(lambda: False, site, quiet_s)
        for number, incident in enumerate(INCIDENTS, start=1):
            _say(_chapter(number, incident))
            before = traffic.answered()
            began_s = monotonic()
            fired = inject(site, incident, hold_s=HOLD_S if is_watched else HOLD_UNWATCHED_S)
            _say(_end_of(site, fired, monotonic() - began_s, traffic.answered() - before))
            if not fired:
                silent.append(incident.title)
            is_well = recover(site, within_s=recovery_s)
            _say(told_of_money(site, is_well))
        if options.is_once:
            return 1 if is_watched and silent else 0
        _say("\nThat was all three. Traffic goes on; look around. Ctrl-C stops everything.")
        while True:
            site.require_alive()
            sleep(LOOK_EVERY_S)


def inject(site: Site, incident: Incident, *, hold_s: float) -> set[str]:
    """Inject the fault until one of its alerts has paged, or for `hold_s`; returns the firing alerts."""
    site.pager.forget()
    began_s = monotonic()
    seen: set[str] = set()

    def is_seen() -> bool:
        seen.update(incident.pages & site.pager.woken_by())
        if monotonic() - began_s > NO_NEWS_S:
            # An alert that paged a few minutes ago does not page again.
            firing = site.firing(datetime.now(UTC) - timedelta(seconds=PAGED_WITHIN_S))
            seen.update(incident.pages & firing)
        return bool(seen)

    with FaultClient(Path(site.run["fault_proxy_control"])) as fault_client:

        def is_over() -> bool:
            # On a busy machine our heartbeat may be late, and then the proxy ends the fault.
            if fault_client.describe()[incident.link]["mode"] is None:
                fault_client.inject(incident.link, incident.mode, ttl_s=hold_s + LOOK_EVERY_S)
            return is_seen()

        _wait(is_over, site, hold_s)
    return seen


def recover(site: Site, *, within_s: float) -> bool:
    """Wait until the breaker is closed and no payment is in doubt or queued; False at the limit."""
    return _wait(lambda: _is_well(site), site, within_s)


def _is_well(site: Site) -> bool:
    return (
        site.metric("holdfast_breaker_state", 'state="closed"') == 1
        and site.metric("holdfast_unknown_oldest_age_seconds") == 0
        and site.metric("holdfast_queued_oldest_age_seconds") < QUEUED_S
    )


def _wait(is_so: Callable[[], bool], site: Site, within_s: float) -> bool:
    end_s = monotonic() + within_s
    while monotonic() < end_s:
        site.require_alive()
        with contextlib.suppress(*_NO_ANSWER):
            if is_so():
                return True
        sleep(LOOK_EVERY_S)
    return False


def _addresses(site: Site, environ: Mapping[str, str]) -> str:
    key = site.run["api_key"]
    if "HOLDFAST_BOOTSTRAP_API_KEY" in environ:
        key = "$HOLDFAST_BOOTSTRAP_API_KEY"
    lines = [f"console       {site.run['ops_url']}/   (API key {key})"]
    if "prometheus" in site.urls:
        lines.append(f"Prometheus    {site.urls['prometheus']}/alerts")
    if "alertmanager" in site.urls:
        lines.append(f"Alertmanager  {site.urls['alertmanager']}/#/alerts")
    if "grafana" in site.urls:
        lines.append(f"Grafana       {site.urls['grafana']}/d/holdfast-incident")
    missing = [name for name in ("prometheus", "alertmanager") if name not in site.urls]
    if missing:
        lines.append(f"Not installed: {', '.join(missing)}. {TO_INSTALL}")
    elif "grafana" not in site.urls:
        lines.append(
            "Grafana is not installed (grafana.com/grafana/download); docs/dashboards.md has pictures"
        )
    return "\n" + "\n".join(f"  {line}" for line in lines) + "\n"


def _chapter(number: int, incident: Incident) -> str:
    return (
        f"\n{number} of {len(INCIDENTS)}  {incident.title}: {incident.what_happens}.\n"
        f"  the log says  {incident.words}\n"
        f"  look at       dashboard Incident, {incident.look}\n"
        f"  should page   {' or '.join(sorted(incident.pages))}"
    )


def _end_of(site: Site, fired: set[str], after_s: float, answers: Counter[str]) -> str:
    told = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
    how = "No alert paged"
    if fired:
        is_news = fired & site.pager.woken_by()
        how = "An alert paged" if is_news else f"{' and '.join(sorted(fired))} fired as before"
    return f"  {how} after {after_s:.0f} s; the fault ends. Answers meanwhile: {told or 'none'}."


def told_of_money(site: Site, is_well: bool) -> str:
    """A line on the payments after an incident, or that the ops plane does not answer."""
    try:
        violations = site.metric("holdfast_invariant_violations")
        doubt = site.metric("holdfast_payments_open", 'status="unknown"')
        queued = site.metric("holdfast_queued_payments")
    except _NO_ANSWER:
        return "  Afterwards the ops plane did not answer; see the console for open payments."
    open_ones = f"{doubt:.0f} are still in doubt, {queued:.0f} queued"
    state = "all is settled" if is_well else open_ones
    return f"  Afterwards {state}; broken promises about money: {violations:.0f}."


def _news(line: str) -> None:
    _say(f"  {strftime('%H:%M:%S')}  {line}")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
