"""Recovery of a pruned network's accuracy without training."""
