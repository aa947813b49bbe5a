"""References of README and docs/ exist: pages, pictures, make targets, settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.settings import describe

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
# Variables of the agent's image, Grafana's provisioning and the command `drill`, not of the service.
OTHERS = {
    *("PROMETHEUS_CONFIG_CONTENT", "PROMETHEUS_URL", "HOLDFAST_DASHBOARDS"),
    *("HOLDFAST_OPS_URL", "HOLDFAST_API_KEY"),
}


def targets(page: Path) -> set[Path]:
    """The files that a page links or shows."""
    text = page.read_text()
    named = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    return {(page.parent / name).resolve() for name in named if "://" not in name}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert {target for target in targets(page) if not target.exists()} == set()


def test_every_picture_is_shown() -> None:
    shown = set().union(*(targets(page) for page in PAGES))

    assert {picture for picture in DOCS.rglob("*.png") if picture not in shown} == set()


def test_every_target_of_make_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    there = set(re.findall(r"(?m)^([a-z-]+):", makefile))

    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text())}

    assert named
    assert named - there == set()


def test_every_module_and_test_that_is_named_exists() -> None:
    ours = [ROOT / folder for folder in ("service", "tests", "grafana", "deploy")]
    modules = [path for folder in ours for path in folder.rglob("*.py")]
    paths = [f"/{module.relative_to(ROOT)}" for module in modules]
    tests = {module.stem for module in modules} | {
        name for module in modules for name in re.findall(r"def (test_\w+)", module.read_text())
    }
    code = [span for page in PAGES for span in re.findall(r"`([^`\n]+)`", page.read_text())]

    named = {name for span in code for name in re.findall(r"[\w/]+\.py\b", span)}
    named_tests = {name for span in code for name in re.findall(r"\btest_\w+", span)}

    assert named
    missing = {name for name in named if not any(path.endswith(f"/{name}") for path in paths)}
    assert missing - {"wsgi.py"} == set()
    assert named_tests - tests == set()


def test_every_setting_that_is_named_exists() -> None:
    ours = {name for name, *_ in describe()}
    there = ours | {f"{name}_FILE" for name in ours} | OTHERS

    named = {
        name
        for page in PAGES
        for name in re.findall(r"\b(?:HOLDFAST|STRIPE|PROMETHEUS)_[A-Z_]+\b", page.read_text())
    }

    # `HOLDFAST_KEEP_*` names a family.
    families = {name for name in named if name.endswith("_")}
    assert named
    assert named - families - there == set()
    assert [one for one in families if not any(name.startswith(one) for name in there)] == []
