"""What a network is trained for: losses, checks of batches and metrics."""
