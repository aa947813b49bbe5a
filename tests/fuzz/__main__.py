"""`make fuzz`: searches bytes that break a property, guided by coverage, for a minute in total.

python -m tests.fuzz                     all properties, FUZZ_S seconds (60) in all
python -m tests.fuzz json_body FILE      one property on what was found, to see it fail
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

SEEDS = Path(__file__).with_name("seeds")
# Longer inputs find little in parsers with a limit of 64 KiB, and cost much.
LONGEST = 4096
# No input may hang a parser. By the clock, so a busy machine counts too: time in proportion to the input
# is `time_of_parsers`' subject, which measures processor time.
SLOWEST_S = 30


def main(arguments: list[str]) -> int:
    """Fuzz all properties, or run the fuzzer of one."""
    if find_spec("atheris") is None:
        print("make fuzz needs atheris, which is built for Linux on x86_64 only.", file=sys.stderr)
        return 2
    if arguments:
        return _fuzz_one(arguments[0], arguments[1:])
    from tests.fuzz.properties import PROPERTIES

    at_once = max(1, os.cpu_count() or 1)
    each_s = max(1, round(float(os.environ.get("FUZZ_S", "60")) * at_once / len(PROPERTIES)))
    print(f"{len(PROPERTIES)} properties, {each_s} s each, {at_once} at once")
    with ThreadPoolExecutor(at_once) as pool:
        held = list(pool.map(lambda name: _fuzz(name, each_s), PROPERTIES))
    print("every property held" if all(held) else "NOT every property held")
    return 0 if all(held) else 1


def _fuzz(name: str, seconds: int) -> bool:
    """Run one fuzzer to its end and print its result."""
    with tempfile.TemporaryDirectory() as corpus:
        found_in = Path(tempfile.gettempdir(), f"holdfast-fuzz-{name}-")
        command = [sys.executable, "-m", "tests.fuzz", name, corpus]
        if (SEEDS / name).is_dir():
            command.append(str(SEEDS / name))
        limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SLOWEST_S}"]
        ran = subprocess.run(
            [*command, *limits, f"-artifact_prefix={found_in}", "-print_final_stats=1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + 60,
            check=False,
        )
    inputs = re.search(r"number_of_executed_units: (\d+)", ran.stdout)
    coverage = re.findall(r"cov: (\d+)", ran.stdout)
    tells = (
        f"{name:17} {inputs[1] if inputs else '?':>8} inputs, coverage {(coverage or ['?'])[-1]}"
    )
    if ran.returncode == 0:
        print(f"  {tells}, held")
        return True
    print(f"  {tells}, BROKEN")
    print(
        re.sub(r"(?m)^(?!\s|\w*(?:Error|Exception)|.*(?:Traceback|===)).*\n", "", ran.stdout)[
            -3000:
        ]
    )
    for artifact in re.findall(r"Test unit written to (\S+)", ran.stdout):
        print(f"  again: {sys.executable} -m tests.fuzz {name} {artifact}")
        print(f"  bytes: {Path(artifact).read_bytes()!r}")
    return False


def _fuzz_one(name: str, arguments: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["service"]):
        from tests.fuzz.properties import PROPERTIES

    atheris.Setup([sys.argv[0], *arguments], PROPERTIES[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
