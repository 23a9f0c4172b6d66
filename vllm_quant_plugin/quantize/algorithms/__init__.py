"""One module for each quantization algorithm, and the registry."""
