"""The output folder: tensors, configuration, model card, record."""
