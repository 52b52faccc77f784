"""The targets, each a module: what is compared, how it is measured, the ratios to be reached."""
