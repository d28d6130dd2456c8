"""CPU cost of graph tracing and surgery, compared with Torch-Pruning."""
