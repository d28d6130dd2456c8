"""Recovery without training: accuracy right after the cut, its cost, and the start that it gives to training."""
