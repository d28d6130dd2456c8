"""Fine-tuning of a pruned network."""
