"""Pruned networks in smaller numbers: 8-bit integers for ONNX Runtime and for torch."""
