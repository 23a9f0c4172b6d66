"""Every name that serving imports from vLLM, so that a release that moves one is followed here.

Everything else in this package talks to vLLM through its command line and its HTTP endpoints. One module for each
process that needs names, because importing any of vLLM costs seconds. ``scripts/check_vllm_wheel.py`` checks the names
and the ``RELIED_ON`` parameters in a wheel's sources, without importing them.
"""
