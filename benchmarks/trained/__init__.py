"""Pruned networks and dense ones after the same further training."""
