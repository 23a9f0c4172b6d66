"""The placements of a model on devices: which fit, how fast they are, and which one is chosen."""
