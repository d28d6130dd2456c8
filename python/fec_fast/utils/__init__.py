"""Helpers that know nothing of pruning; every other room may import them."""
