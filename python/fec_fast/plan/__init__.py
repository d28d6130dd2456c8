"""Plans: which channels are kept, their application to a model, the proof that it is correct, and checkpoints."""
