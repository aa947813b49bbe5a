"""Ask /healthz of this container, for engines that can only run a command: status 0 when it is 200.

python deploy/healthcheck.py 8080
"""

from __future__ import annotations

import http.client
import sys

# Below the engine's own limit of 3 s, so that the reason is seen.
TIMEOUT_S = 2.0


def main(port: int) -> int:
    """0 when the plane on this port answers 200, else 1 and one line with its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on port {port}: {type(error).__name__}")  # noqa: T201
        return 1
    finally:
        connection.close()
    if status != 200:
        print(f"/healthz on port {port} answers {status}")  # noqa: T201
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
