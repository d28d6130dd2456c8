"""What a filter is worth: the entropies and the backends that compute them."""
