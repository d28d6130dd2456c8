"""Operator rules: what each ATen operator does to channel labels and shapes, and what it costs."""
