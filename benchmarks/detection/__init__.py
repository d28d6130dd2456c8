"""Average precision of a pruned SSD detector."""
