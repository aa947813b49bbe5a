"""Observes a local run as operators would: Prometheus, Alertmanager, Grafana, and three incidents."""
