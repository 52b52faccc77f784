"""Run a function in a spawned process, and forward its log records."""
