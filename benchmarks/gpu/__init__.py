"""CUDA and Triton kernels: correctness and speed on a GPU, cost and resources from the compiled code."""
