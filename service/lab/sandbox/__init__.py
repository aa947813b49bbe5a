"""The sandbox provider: Stripe's shape over TLS, with its own faults and its own books.

A process beside the service, never a part of it: neither imports the other. `api.py` is the path of
one call; start there.
"""
