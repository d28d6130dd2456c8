"""Code that several test modules share: networks, data sets, comparisons, and the programs of worker processes."""
