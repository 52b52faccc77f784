"""The targets, each a module: its comparisons, how they are measured, and the ratios to be reached."""
