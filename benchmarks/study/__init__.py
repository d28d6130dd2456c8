"""Accuracy of pruned classifiers by criterion, policy and budget."""
