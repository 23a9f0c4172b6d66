"""The admin app beside the server: probes, plan, metrics and a status page."""
