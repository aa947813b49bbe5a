"""Every drill on a healthy local stack, and again with one of its guards off: verdicts with figures.

python -m tests.bench.bench_drills                        all, and all guards
python -m tests.bench.bench_drills slow-drip --healthy    one, with its guards on
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.stack.drilling import ask, begin_drill, ended
from tests.support.stack.running_stack import RunningStack, running_stack

LONGEST_S = 400.0


@dataclass(frozen=True)
class Off:
    """A disabled guard: by settings, or by stopping its process."""

    told: str
    settings: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


NO_BREAKER = Off("no breaker", {"HOLDFAST_BREAKER_ENABLED": "false"})
NO_RECONCILER = Off("reconciler stopped", stopped="reconciler")
LONG_TIMEOUT = Off("provider timeout 20 s", {"HOLDFAST_PROVIDER_TIMEOUT_MS": "20000"})
LONG_WAIT = Off("pool wait 20 s", {"HOLDFAST_DB_POOL_WAIT_MS": "20000"})
SMALL_POOL = Off(
    "pool of 1, no line",
    {"HOLDFAST_DB_POOL_SIZE": "1", "HOLDFAST_DB_POOL_WAIT_MS": "5"},
)
# An option of libpq: the database reports a commit before it is on the disk.
NO_SYNC = Off("commits not waited for", {"PGOPTIONS": "-c synchronous_commit=off"})
ONE_SHOT = Off("one_shot without keys", {"HOLDFAST_PROVIDER_FLOW": "one_shot"})

GUARDS: dict[str, tuple[Off, ...]] = {
    "payment-timeout": (NO_BREAKER, LONG_TIMEOUT, NO_RECONCILER),
    "connection-error": (NO_BREAKER,),
    "pool-exhaustion": (LONG_WAIT,),
    "charged-but-answer-lost": (ONE_SHOT, NO_RECONCILER),
    "slow-drip": (NO_BREAKER, LONG_TIMEOUT),
    "provider-429-500": (NO_RECONCILER,),
    "database-restart": (NO_SYNC,),
    "slow-database": (SMALL_POOL,),
    "worker-kill": (NO_RECONCILER,),
    "webhook-disorder": (NO_RECONCILER,),
    "half-open-stampede": (NO_BREAKER,),
    "long-outage": (NO_BREAKER,),
    "lost-commits": (NO_RECONCILER,),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("drills", nargs="*", help=f"of: {', '.join(GUARDS)} (all)")
    parser.add_argument("--healthy", action="store_true", help="only with all guards on")
    parser.add_argument("--guards", action="store_true", help="only with a guard off")
    parser.add_argument("--scope", default="instance", choices=["instance", "pair"])
    parser.add_argument("--verbose", action="store_true", help="each check and step")
    arguments = parser.parse_args()
    names = arguments.drills or list(GUARDS)
    show = _tell if arguments.verbose else _row
    if not arguments.guards:
        with _local_stack({}) as local_stack:
            for name in names:
                if not _allows(local_stack, name, arguments.scope):
                    continue
                show(_run(local_stack, name, arguments.scope), "all guards on")
    if not arguments.healthy:
        for name in names:
            for off in GUARDS[name]:
                with _local_stack(off.settings) as local_stack:
                    if off.stopped:
                        os.kill(local_stack.pids[off.stopped], signal.SIGSTOP)
                    try:
                        show(_run(local_stack, name, arguments.scope), off.told)
                    finally:
                        if off.stopped:
                            os.kill(local_stack.pids[off.stopped], signal.SIGCONT)
    return 0


def _allows(local_stack: RunningStack, name: str, scope: str) -> bool:
    drills = {drill["name"]: drill for drill in ask(local_stack, "GET", "/drills").json()["drills"]}
    return scope in drills[name]["scopes"]


def _local_stack(settings: dict[str, str]) -> Any:
    return running_stack(Path(tempfile.mkdtemp(prefix="holdfast-drills-")), **settings)


def _run(local_stack: RunningStack, name: str, scope: str) -> dict[str, Any]:
    return ended(local_stack, begin_drill(local_stack, name, scope=scope), timeout_s=LONGEST_S)


def _row(run: dict[str, Any], guard: str) -> None:
    shown = "; ".join(
        f"{'' if check['ok'] else '**'}{check['text']}: {check['value']}{'' if check['ok'] else '**'}"
        for check in run["expectations"]
    )
    count = run["sides"][0]["callers"]["count"] if run["sides"] else 0
    print(
        f"| {run['name']} | {run['scope']} | {guard} | {run['verdict']} | {count} | {run['elapsed_s']:.0f} s"
        f" | {run['summary']} | {shown} |",
        flush=True,
    )


def _tell(run: dict[str, Any], guard: str) -> None:
    print(
        f"\n--- {run['name']}, {guard}: {run['verdict']} in {run['elapsed_s']:.1f} s. {run['summary']}"
    )
    for step in run["progress"]:
        print(f"  {step['at_s']:6.1f} {step['phase']:9} {step['text']}")
    for kind in ("bite", "expectations", "invariants"):
        for check in run[kind]:
            if kind != "invariants" or not check["ok"]:
                told, value = (
                    check.get("text", check.get("rule")),
                    check.get("value", check.get("violations")),
                )
                print(
                    f"  {'ok ' if check['ok'] else 'NOT'} {told}: {value} [{check.get('min')}, {check.get('max')}]"
                )
    for side in run["sides"]:
        callers = side["callers"]
        print(
            "  ",
            side["name"],
            callers["by_status"],
            callers["by_outcome"],
            callers["by_code"],
            callers["ms"],
        )
        print("  ", side["payments_by_status"])
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
