"""The paper: Figures 1 and 2, equations 1 to 10."""
