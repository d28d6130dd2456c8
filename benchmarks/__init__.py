"""Benchmarks: one subpackage per subject, each run as ``python -m benchmarks.SUBJECT`` from the repository root."""
