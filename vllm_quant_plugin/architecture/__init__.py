"""A model: its parameters, caches and rules of sharding, from config.json and safetensors headers. No torch."""
