"""Pruning in rounds while a network is trained, in any training loop."""
