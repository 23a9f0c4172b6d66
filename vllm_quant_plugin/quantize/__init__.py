"""Offline quantization: recipe, calibration, the layer-by-layer and data-free engines, what is written."""
