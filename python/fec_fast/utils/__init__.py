"""Helpers without knowledge of pruning: models, tensors, files, text, processes. Every other room may import them."""
