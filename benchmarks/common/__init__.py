"""What all benchmarks share: tables, result files, measuring."""
