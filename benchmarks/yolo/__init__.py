"""Networks of ultralytics: what can be pruned, how long it takes, and detection of blood cells before and after."""
