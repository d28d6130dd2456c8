"""How much each layer loses: targets, policies and the search for counts."""
