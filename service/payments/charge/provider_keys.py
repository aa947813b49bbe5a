"""The keys that a provider is given for our calls: derived from what the caller sent. Pure.

A row that a failover lost is claimed again under another id; a key made from that id would let the
provider execute the call a second time. Made from the caller's own key, it is the same key again.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

# Stands in the provider's metadata as this entry, so that a charge whose row was lost is found.
DIGEST_ENTRY = "key_digest"


def key_digest(merchant_id: UUID, idempotency_key: str, operation: str) -> str:
    """SHA-256 over merchant, client key and operation (payment, refund, ..), in hexadecimal.

    The client's key cannot be read back from it, and no two operations share one.
    """
    # No part can hold a line feed: a client's key is visible ASCII.
    named = f"{operation}\n{merchant_id.hex}\n{idempotency_key}"
    return hashlib.sha256(named.encode()).hexdigest()


def provider_key(digest: str, series: int) -> str:
    """The key of one series; the next series begins only after proof about the last one."""
    return f"hf-{digest}-{series}"
