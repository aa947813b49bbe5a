"""`make check-supply`: write a CycloneDX SBOM, and look up known vulnerabilities of its packages.

Status 0: all packages were looked up, and none has a known vulnerability. 1: one has. 3: a look-up
failed, so there is no result. The SBOM is written in any case.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# The locks of the shipped service, of a local run, and of CI.
LOCKS = ("requirements.lock", "requirements-embedded.lock", "requirements-test.lock")
SBOM = ROOT / "dist" / "holdfast.cdx.json"
HOLES, NOT_CHECKED = 1, 3
# The service is asked package by package.
ASKING_LIMIT_S = 300


def main() -> int:
    """Write the SBOM, then audit each lock; print one line for each result."""
    write_sbom()
    answers = [ask(lock) for lock in LOCKS]
    return HOLES if HOLES in answers else max(answers)


def write_sbom() -> None:
    """List every package of the service with its hashes; fails loudly where one is missing."""
    SBOM.parent.mkdir(exist_ok=True)
    command = [str(BIN / "cyclonedx-py"), "requirements", str(ROOT / LOCKS[0])]
    run([*command, "--output-reproducible", "--of", "JSON", "-o", str(SBOM)], check=True)
    listed = {
        (part["name"], part["version"])
        for part in json.loads(SBOM.read_text())["components"]
        if any("hashes" in where for where in part["externalReferences"])
    }
    missing = pins(ROOT / LOCKS[0]) - listed
    if missing:
        raise SystemExit(f"{SBOM.name} lacks {sorted(missing)}")
    print(f"{SBOM.relative_to(ROOT)}: {len(listed)} packages, each with its hashes")


def pins(lock: Path) -> set[tuple[str, str]]:
    """Every package that the lock pins, with its version."""
    return set(
        re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", lock.read_text())
    )


def ask(lock: str) -> int:
    """Look up the lock's packages and print the result."""
    command = [str(BIN / "pip-audit"), "--requirement", str(ROOT / lock), "--require-hashes"]
    # The lock is whole: nothing is resolved, nothing is installed.
    command += ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
    try:
        packages = json.loads(run(command, check=False).stdout)["dependencies"]
    except (ValueError, subprocess.TimeoutExpired):
        packages = []
    status, lines = verdict(packages)
    for line in lines:
        print(f"{lock}: {line}")
    return status


def verdict(packages: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Classify pip-audit's answer as 0, HOLES or NOT_CHECKED, with a sentence for the user.

    By itself, pip-audit skips packages that it could not look up, and ends with 0.
    """
    if not packages:
        return NOT_CHECKED, ["NOT CHECKED: the vulnerability service cannot be reached"]
    lines = []
    for package in packages:
        for hole in package.get("vulns", ()):
            mended = ", ".join(hole["fix_versions"]) or "no version yet"
            name = f"{package['name']} {package['version']}"
            lines.append(f"{name} has a known hole, {hole['id']}; mended in {mended}")
    status = HOLES if lines else 0
    unknown = sum("skip_reason" in package for package in packages)
    if unknown:
        lines.append(f"NOT CHECKED: {unknown} of {len(packages)} packages could not be looked up")
        status = status or NOT_CHECKED
    return status, lines or [f"{len(packages)} packages, none with a known hole"]


def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
    """Run the command; print its output only after a final failure."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=ASKING_LIMIT_S, check=check
    )


if __name__ == "__main__":
    sys.exit(main())
