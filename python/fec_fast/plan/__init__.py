"""What remains of a network: the plan, its application, its proof and its files."""
