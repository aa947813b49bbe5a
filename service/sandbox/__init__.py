"""The stand-in provider: Stripe's shape over TLS, faults of its own, books of its own.

A process beside the service, never a part of it: it imports nothing of the service and the service
imports nothing of it. `api.py` is the path of one call; start there.
"""
