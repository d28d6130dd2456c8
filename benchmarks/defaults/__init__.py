"""The defaults of ``fec_fast.prune`` compared with uniform ratios and the L1 norm, over networks of different kinds."""
