"""How much faster pruned networks are where they are deployed: torch and ONNX Runtime, one thread and all."""
