"""Pruned networks in 8 bits: what is lost, and what is won."""
