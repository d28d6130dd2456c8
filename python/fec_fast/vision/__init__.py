"""Networks by name, weights and images."""
