"""Mixed precision: bits per module from a recipe file, or chosen to meet a size."""
