"""The provider's idempotency keys, derived from the caller's key. Pure.

A row lost in a failover is claimed again under another id; a key made from that id would let the
provider execute the call a second time. A key made from the caller's own key is the same again.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

# The name of its entry in the provider's metadata, so that a charge with a lost row is found.
DIGEST_ENTRY = "key_digest"


def key_digest(merchant_id: UUID, idempotency_key: str, operation: str) -> str:
    """SHA-256 over merchant, client key and operation (payment, refund, ..), in hexadecimal.

    The client's key cannot be read back from it, and no two operations share one.
    """
    # No part can contain a line feed: a client's key is visible ASCII.
    named = f"{operation}\n{merchant_id.hex}\n{idempotency_key}"
    return hashlib.sha256(named.encode()).hexdigest()


def provider_key(digest: str, series: int) -> str:
    """The key of one series; the next series begins only after proof about the last one."""
    return f"hf-{digest}-{series}"
