"""The connection pool of a process: queue, checkout, refill and figures."""
