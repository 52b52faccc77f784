"""The targets, one module each: the comparison, its measurement, and the ratios to reach."""
