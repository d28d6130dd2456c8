"""Pruning: from a model and a target to a plan and a smaller network."""
