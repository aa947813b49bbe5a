"""The command lines of the two planes, and the exec into one of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from service.settings import Settings, SettingsError
from service.startup.database import require_all

# The directory of `wsgi.py` and `deploy/`: the parent of the package.
ROOT = Path(__file__).resolve().parent.parent.parent


def data_plane() -> list[str]:
    """gunicorn with /v1 and several workers."""
    return _gunicorn("gunicorn.conf.py")


def ops_plane() -> list[str]:
    """gunicorn with the diagnostics and one worker."""
    return _gunicorn("gunicorn.ops.conf.py")


def become_gunicorn(command: list[str], settings: Settings) -> NoReturn:
    """Replace this process, so that signals from outside reach gunicorn directly."""
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set: only `run` starts its own PostgreSQL.")
    require_all(settings)
    # The same directory for every process of the plane, also for those that gunicorn starts later.
    settings.metrics_path.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_path.absolute())
    # gunicorn's own --pythonpath comes after it has read its file, which imports the service.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.execv(command[0], command)  # noqa: S606


def _gunicorn(config_name: str) -> list[str]:
    config = ROOT / "deploy" / config_name
    if not config.exists():
        raise SettingsError(f"{config} is missing: run from a checkout or from the image.")
    return [sys.executable, "-m", "gunicorn", "-c", str(config)]
