"""The model of a plan: where it is read from, and with which scheme it is served."""
