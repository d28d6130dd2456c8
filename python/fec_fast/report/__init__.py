"""The report of a pruning: one HTML file with charts, for a browser without a network."""
