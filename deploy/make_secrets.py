"""Make the secrets that compose.yaml mounts, each in a file: `make_secrets.py DIRECTORY`.

    docker run --rm --user 0:0 -v ./deploy/secrets:/secrets --entrypoint python holdfast:0.1.0 \\
        deploy/make_secrets.py /secrets

An existing file is kept: write stripe_api_key and stripe_webhook_secret yourself, before or after,
and remove a file to make it again. No secret is printed.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from service.payments.merchants import generate_key

# The image's own user. The service refuses a world-readable secret, so a group reads it.
READERS_GID = 10001


def main(directory: Path) -> int:
    """Write the missing files and print their names; return the exit status."""
    directory.mkdir(parents=True, exist_ok=True)
    owner = _password_in(directory / "postgres_password")
    service = _password_in(directory / "service_password")
    texts = {
        "postgres_password": owner,
        "service_password": service,
        "migrate_database_url": f"postgresql://holdfast_owner:{owner}@postgres:5432/holdfast",
        "database_url": f"postgresql://holdfast_service:{service}@postgres:5432/holdfast",
        "bootstrap_api_key": generate_key("test"),
        # The sandbox takes any; a real one is yours to write.
        "stripe_api_key": "sk_test_sandbox",
        "stripe_webhook_secret": f"whsec_{secrets.token_urlsafe(24)}",
        "grafana_password": secrets.token_urlsafe(18),
    }
    made = [name for name, text in texts.items() if _write(directory / name, text)]
    print(f"Made {', '.join(made)}." if made else "Nothing was missing.")  # noqa: T201
    return 0


def _password_in(path: Path) -> str:
    """Return the file's content, so that a later address contains the same secret; else a new one."""
    return path.read_text().strip() if path.exists() else secrets.token_hex(16)


def _write(path: Path, text: str) -> bool:
    """Write the file unless it is there; True when it was made."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440)
    except FileExistsError:
        return False
    with open(descriptor, "w") as file:
        file.write(text + "\n")
    os.chmod(path, 0o440)
    if os.geteuid() == 0:
        # The directory's owner may change the files; our user reads them.
        os.chown(path, path.parent.stat().st_uid, READERS_GID)
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
