"""The address in a DSN, and the same DSN for another role or through a relay."""

from __future__ import annotations

from pathlib import Path

from psycopg2.extensions import make_dsn, parse_dsn

Address = tuple[str, int] | str


def address_of(dsn: str) -> Address | None:
    """Host and port, or the path of a unix socket; None for several hosts or none at all."""
    parts = parse_dsn(dsn)
    host, port = parts.get("hostaddr") or parts.get("host") or "", str(parts.get("port") or 5432)
    if not host or "," in host or not port.isdigit():
        return None
    if host.startswith("/"):
        return f"{host}/.s.PGSQL.{port}"
    return host, int(port)


def as_role(dsn: str, role: str) -> str:
    """The same database for another role, without the first one's password."""
    parts = {name: text for name, text in parse_dsn(dsn).items() if name != "password"}
    return str(make_dsn(**{**parts, "user": role}))


def by_way_of(dsn: str, address: Address) -> str:
    """The DSN through a relay at `address`; over TCP the name is kept, so TLS still verifies it."""
    if isinstance(address, str):
        path = Path(address)
        return str(make_dsn(dsn, host=str(path.parent), port=path.suffix.removeprefix(".")))
    return str(make_dsn(dsn, hostaddr=address[0], port=str(address[1])))
