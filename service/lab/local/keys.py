"""The secrets that a local stack creates at its first start and reuses afterwards."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from service.payments.merchants import generate_key


@dataclass(frozen=True)
class LocalKeys:
    """Valid for this machine's sandbox only; the API key is stored hashed in the database."""

    api_key: str
    webhook_secret: str


def keys_of(home: Path, mode: Literal["test", "live"]) -> LocalKeys:
    """Read the keys of `home`, or create them: the same on every start, separate for each mode."""
    path = home / ("keys.json" if mode == "test" else "keys-live.json")
    if path.exists():
        return LocalKeys(**json.loads(path.read_text()))
    keys = LocalKeys(generate_key(mode), f"whsec_{secrets.token_urlsafe(24)}")
    write_private(path, asdict(keys))
    return keys


def write_private(path: Path, content: object) -> None:
    """Write JSON that only this user can read; the file is replaced as a whole or not at all."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    new.replace(path)
