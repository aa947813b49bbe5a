"""Metrics, logs, traces, health and statistics of the service."""
