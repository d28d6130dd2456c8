"""Results of the recipes."""
