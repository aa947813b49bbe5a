"""Writes the dashboards' JSON: `python -m grafana.build [--runbooks URL] [DIRECTORY]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import ALL
from grafana.frame import ANNOTATION_TEXTS, Board, framed
from grafana.panels import RUNBOOKS

DASHBOARDS = Path(__file__).parent / "dashboards"


def rendered(board: Board, *, runbooks: str = RUNBOOKS) -> str:
    """The dashboard as Grafana reads it; the same text for the same board, always."""
    plain: dict[str, Any] = json.loads(
        json.dumps(framed(board, runbooks=runbooks).build(), cls=JSONEncoder)
    )
    # Links to a panel hold its number, so it must not depend on what Grafana counts.
    for number, panel in enumerate(plain["panels"], start=1):
        panel["id"] = number
    for annotation in plain["annotations"]["list"]:
        name = annotation["name"]
        annotation |= {"titleFormat": name, "textFormat": ANNOTATION_TEXTS[name], "step": "15s"}
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m grafana.build", description=__doc__)
    parser.add_argument("--runbooks", default=RUNBOOKS, help="where docs/runbooks is published")
    parser.add_argument("directory", nargs="?", type=Path, default=DASHBOARDS)
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    for board in ALL:
        path = options.directory / f"{board.name}.json"
        path.write_text(rendered(board, runbooks=options.runbooks), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
