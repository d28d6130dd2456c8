"""Coupled channels: the trace of a model, which of its channels are removed together, and what they cost."""
