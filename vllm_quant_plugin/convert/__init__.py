"""From one on-disk format to another through the canonical form, without loss or not at all."""
