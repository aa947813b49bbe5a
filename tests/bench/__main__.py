"""Run all benchmarks on this machine, or the named ones: `python -m tests.bench [pool breaker ...]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    here = Path(__file__).parent
    names = sorted(path.stem.removeprefix("bench_") for path in here.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(names)} (all)")
    wanted = parser.parse_args().names or names
    unknown = set(wanted) - set(names)
    if unknown:
        parser.error(f"there is no bench named {', '.join(sorted(unknown))}")
    failed = 0
    for name in wanted:
        print(f"\n=== {name}\n", flush=True)
        # One process each: memory left by one benchmark must not slow the next one down.
        failed += (
            subprocess.run([sys.executable, "-m", f"tests.bench.bench_{name}"]).returncode != 0
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
