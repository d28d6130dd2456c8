"""The backends that compute entropies: C++ on the CPU, CUDA and Triton."""
