"""Recovery without training: accuracy right after the cut, by method, network and budget; costs; the start of training."""
