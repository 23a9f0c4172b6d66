"""The life of one served model: start it, wait until it is ready, monitor, restart and drain it."""
