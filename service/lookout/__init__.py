"""Watches a local run as operators would: Prometheus, Alertmanager, Grafana, and the incident to look at."""
