"""The adapter of Stripe: its API, its answers and its lists."""
