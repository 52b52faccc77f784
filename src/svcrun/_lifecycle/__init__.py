"""Start, restart and stop a set of services."""
