"""Fine-tuning: the training loop, its settings, its state on disk, and the tasks it trains networks for."""
