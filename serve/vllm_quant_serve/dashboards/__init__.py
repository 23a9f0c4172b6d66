"""A Grafana dashboard and Prometheus alert rules for a supervised server."""
