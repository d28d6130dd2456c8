"""Recovery of accuracy without training."""
