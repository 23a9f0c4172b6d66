"""Metrics: ``vqp_*`` in vLLM's own ``/metrics``, and the supervisor's beside them."""
