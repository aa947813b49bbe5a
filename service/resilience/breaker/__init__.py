"""The circuit breaker, shared by the processes of a host."""
