"""What to plan for: named GPUs, this host's GPUs, or this host's CPU."""
