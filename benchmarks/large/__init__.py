"""Memory and time of every step on large models."""
