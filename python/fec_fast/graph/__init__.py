"""Which channels belong together: the trace of a model and its coupled sets."""
