"""The experiments: Tables 1 to 3, bounds, efficiency."""
