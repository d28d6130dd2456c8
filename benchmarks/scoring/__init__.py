"""CPU cost of scoring filters."""
