"""Settles open payments: leases, look-ups, the queue, the sweep, the invariants."""
