"""The dashboards as code: `python -m grafana.build` writes the JSON that Grafana is provisioned with."""
